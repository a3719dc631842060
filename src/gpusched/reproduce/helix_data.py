"""Clusters, machine profiles and layouts of the Helix artifact (Thesys-lab/Helix-ASPLOS25, Apache-2.0)."""

import csv
import json
import re
from configparser import ConfigParser
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.planning.layers.throughput import Workload, throughput
from gpusched.sim.pipelines import BatchLimits
from gpusched.timing.layers import LayerProfile
from gpusched.timing.machines import Machines, Placement

Floats = NDArray[np.float64]

LAYERS = {"llama2_70b": 80, "llama1_30b": 60}
HIDDEN = {"llama2_70b": 8192, "llama1_30b": 6656}
BLOCK_TOKENS = 16
NIC_BYTES_PER_S = 10e9
LONGEST_PROMPT = 2048
DECODE_CONTEXT = 1000
"""Tokens of cache that the artifact allows for each request of a decode batch."""
CLUSTERS = {
    "single24": "helix_cluster_single24.ini",
    "geo24": "helix_cluster_3x_distributed24.ini",
    "hetero42": "helix_cluster_high_heterogeneity42.ini",
    "quality10": "helix_cluster10.ini",
}
IN_FLIGHT = {"single24": 180, "geo24": 180, "hetero42": 500}
"""Requests that the artifact keeps in flight under routers other than Helix's."""
KINDS = ("a100", "v100", "l4", "l4x2", "t4", "t4x2", "t4x4")
_START = {
    "llama2_70b": (80.0, 40.0, 20.0, 30.0, 12.5, 20.0, 30.0),
    "llama1_30b": (48.0, 25.0, 9.0, 15.0, 8.0, 15.0, 23.0),
}
_TYPICAL = {
    "llama2_70b": ((8, 3, 4, 9, 3, 6, 12), (12, 4, 7, 14, 4, 9, 18)),
    "llama1_30b": ((12, 4, 8, 14, 4, 10, 20), (18, 7, 11, 22, 7, 15, 30)),
}


@cache
def published() -> dict[str, Any]:
    """Return what the artifact states in code: KV blocks, batch limits, and layouts."""
    text = resources.files("gpusched.reproduce").joinpath("helix_published.json")
    document: dict[str, Any] = json.loads(text.read_text("utf-8"))
    return document


def published_layout(cluster: str, method: str) -> Placement:
    """Return a layout of LLaMA-70B by ``ilp`` (Helix), ``swarm`` or ``petals``, or that of the
    artifact's comparison of routers, ``routing``."""
    rows = np.array(published()["layouts"][cluster][method], np.int64)
    return Placement(rows[:, 0].copy(), rows[:, 1].copy())


def routing_machines(machines: Machines, cluster: str) -> Machines:
    """Return the cluster with the links that the artifact's comparison of routers has, fewer than
    its layout allows; all of them where none was published."""
    links = published()["routing_links"].get(cluster)
    if links is None:
        return machines
    bandwidth = np.zeros_like(machines.bandwidth_bytes_per_s)
    origin, to = np.array(links, np.int64).T
    bandwidth[origin, to] = machines.bandwidth_bytes_per_s[origin, to]
    np.fill_diagonal(bandwidth, np.inf)
    return replace(machines, bandwidth_bytes_per_s=bandwidth)


def machines_of(folder: Path, cluster: str, model: str = "llama2_70b") -> Machines:
    """Return a cluster of the artifact; ``folder`` holds its tables.

    Raises:
        InputError: a table is missing.
    """
    path = folder / CLUSTERS[cluster]
    if not path.exists():
        raise InputError(f"{path}: no such file; it holds the nodes and links of {cluster}")
    ini = ConfigParser()
    ini.read(path)
    n = ini.getint("NodeNames", "total_compute_nodes")
    found = [ini[f"ComputeNode-{node}"]["type"].lower() for node in range(n)]
    kinds = tuple(kind for kind in KINDS if kind in found)
    bandwidth = np.zeros((n + 1, n + 1))
    latency = np.zeros((n + 1, n + 1))
    for name in ini.sections():
        match = re.fullmatch(r"Link-(source|sink|\d+)-(source|sink|\d+)", name)
        if not match:
            continue
        first, second = (n if end in ("source", "sink") else int(end) for end in match.groups())
        section = ini[name]
        for rows, columns in ((first, second), (second, first)):
            bandwidth[rows, columns] = _quantity(section["bandwidth"])
            latency[rows, columns] = _quantity(section["latency"])
    np.fill_diagonal(bandwidth, np.inf)
    times = _times(folder, model)
    return Machines(
        tuple(f"{found[node]}-{node}" for node in range(n)),
        _regions(bandwidth[:n, :n]),
        np.array([kinds.index(kind) for kind in found], np.int64),
        tuple(_profile(kind, model, times) for kind in kinds),
        bandwidth,
        latency,
        LAYERS[model],
        2.0,
        2.0 * HIDDEN[model],
    )


def throughput_of(machines: Machines, model: str = "llama2_70b") -> tuple[Floats, ...]:
    """Return the tables T(k) of the artifact, from its own start values."""
    at = [KINDS.index(profile.kind) for profile in machines.kinds]
    numbers = np.bincount(machines.kind_of, minlength=len(at))
    usual, most = _TYPICAL[model]
    typical = [usual[i] for i in at]
    if numbers @ typical < 1.2 * machines.layers:
        typical = [most[i] for i in at]
    return throughput(
        machines,
        Workload(750, 240),
        typical_layers=typical,
        start=[_START[model][i] for i in at],
    )


def batch_limits(
    machines: Machines, placement: Placement, model: str = "llama2_70b"
) -> BatchLimits:
    """Return the artifact's caps on batches."""
    profiles = published()["profiles"][model]
    prompts, decodes = [], []
    for kind, count in zip(machines.kind_of, placement.count, strict=True):
        profile = profiles[machines.kinds[kind].kind]
        prompts.append(profile["prompt_requests"][max(count, 1) - 1])
        decodes.append(profile["decode_requests"][max(count, 1) - 1])
    requests, decoding = np.array(prompts, np.int64), np.array(decodes, np.int64)
    return BatchLimits(requests, requests * LONGEST_PROMPT, decoding, decoding * DECODE_CONTEXT)


def _quantity(text: str) -> float:
    units = {"gbps": 1e9, "mbps": 1e6, "kbps": 1e3, "Sec": 1.0, "MilliSec": 1e-3}
    number, _, unit = text.partition("*")
    return float(number) * units[unit.strip()]


def _regions(bandwidth: Floats) -> tuple[str, ...]:
    """Name each node's region: nodes joined by links that are not slow."""
    fast = bandwidth > np.median(bandwidth[np.isfinite(bandwidth)].max()) / 10
    first = fast.argmax(axis=1)
    return tuple(f"region{sorted(set(first)).index(at)}" for at in first)


def _times(folder: Path, model: str) -> dict[tuple[str, str], tuple[Floats, Floats]]:
    path = folder / "helix_bs2time.csv"
    if not path.exists():
        raise InputError(f"{path}: no such file; it holds the layer times of the machines")
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["model"] == model:
                key = (row["machine"], row["phase"])
                points.setdefault(key, []).append((float(row["batch_size"]), float(row["time_ms"])))
    return {
        key: (np.array([size for size, _ in rows]), np.array([ms for _, ms in rows]) / 1e3)
        for key, rows in ((key, sorted(rows)) for key, rows in points.items())
    }


def _profile(
    kind: str, model: str, times: dict[tuple[str, str], tuple[Floats, Floats]]
) -> LayerProfile:
    blocks = np.array(published()["profiles"][model][kind]["kv_blocks"], np.float64)
    return LayerProfile(
        kind,
        *times[kind, "prompt"],
        *times[kind, "decode"],
        kv_tokens=blocks * BLOCK_TOKENS,
        nic_bytes_per_s=NIC_BYTES_PER_S,
    )
