"""Small random networks, placements and traces."""

import math

import numpy as np

from gpusched.policies.routing.pipelines import pipeline_routing
from gpusched.sim.pipelines import OfflineFeed
from gpusched.sim.pipelines.build import Setting
from gpusched.sim.pipelines.edges import compatible, without_dead_ends
from gpusched.sim.pipelines.limits import BatchLimits
from gpusched.timing.layers import LayerProfile
from gpusched.timing.machines import Machines, Placement
from gpusched.traces.trace import Trace


def profile(rng, most_layers, kv_tokens=3000.0):
    prompt = np.concatenate(([0.0], np.sort(rng.uniform(0.001, 0.2, 4))))
    decode = np.concatenate(([0.0], np.sort(rng.uniform(0.001, 0.05, 3))))
    layers = np.arange(1, most_layers + 1)
    return LayerProfile(
        f"kind{rng.integers(1e9)}",
        np.array([0.0, 50, 100, 200, 400]),
        prompt,
        np.array([0.0, 2, 4, 8]),
        decode,
        np.floor(kv_tokens / layers),
        1e6,
    )


def network(rng, n, layers, kinds=2, kv_tokens=3000.0):
    bandwidth = rng.uniform(1e5, 1e6, (n + 1, n + 1))
    latency = rng.uniform(0.0005, 0.05, (n + 1, n + 1))
    np.fill_diagonal(bandwidth, math.inf)
    np.fill_diagonal(latency, 0.0)
    return Machines(
        tuple(f"n{i}" for i in range(n)),
        ("here",) * n,
        rng.integers(0, kinds, n),
        tuple(profile(rng, layers, kv_tokens) for _ in range(kinds)),
        bandwidth,
        latency,
        layers,
        2.0,
        100.0,
    )


def place(rng, n, layers, partial):
    """Stages that cover all layers, the nodes left at random."""
    stages = int(rng.integers(1, min(n, layers) + 1))
    cuts = np.sort(rng.choice(np.arange(1, layers), stages - 1, replace=False))
    bounds = np.concatenate(([0], cuts, [layers]))
    first, count = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for node in range(n):
        stage = node if node < stages else int(rng.integers(0, stages))
        low, high = bounds[stage], bounds[stage + 1]
        if partial and node >= stages and rng.random() < 0.6:
            low = int(rng.integers(0, low + 1))
        first[node], count[node] = low, high - low
    return Placement(first, count)


def flows_of(rng, machines, placement, partial, up=None):
    edges = compatible(machines, placement, partial_inference=partial)
    edges = without_dead_ends(edges, placement.count > 0 if up is None else up)
    return np.where(edges, rng.uniform(0.5, 2.0, edges.shape), 0.0)


def limits_of(rng, n):
    return BatchLimits(
        rng.integers(1, 4, n),
        rng.integers(250, 600, n),
        rng.integers(1, 9, n),
        rng.integers(300, 2000, n),
    )


def requests(rng, count, rate=3.0):
    return Trace(
        np.cumsum(rng.exponential(1 / rate, count)),
        rng.integers(1, 250, count).astype(np.int32),
        rng.integers(1, 12, count).astype(np.int32),
    )


def setting_of(rng, n, layers, routing, partial, offline, kv_tokens=3000.0):
    machines = network(rng, n, layers, kv_tokens=kv_tokens)
    placement = place(rng, n, layers, partial)
    return Setting(
        machines,
        placement,
        pipeline_routing(routing),
        partial,
        limits_of(rng, n),
        6.0,
        1e7,
        0.5,
        int(rng.integers(0, 1000)),
        OfflineFeed(3, 0.7, 0.1, bool(rng.integers(0, 2))) if offline else None,
    )
