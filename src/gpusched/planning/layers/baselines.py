"""Placements that other systems make, to compare with."""

import numpy as np

from gpusched.planning.layers.flow import Network
from gpusched.timing.machines import Placement


def petals(network: Network, *, seed: int = 0) -> Placement:
    """Return a placement as PETALS makes it: machines join in random order, each with as many
    layers as it may hold, where the layers so far are slowest. Needs partial inference."""
    layers = network.machines.layers
    first, count = np.zeros(network.n, np.int64), np.zeros(network.n, np.int64)
    so_far = np.zeros(layers)
    for node in np.random.default_rng(seed).permutation(network.n):
        k = int(min(network.most[node], layers))
        if not k:
            continue
        windows = np.sort(np.lib.stride_tricks.sliding_window_view(so_far, k), axis=1)
        begin = int(np.lexsort(windows.T[::-1])[0])
        first[node], count[node] = begin, k
        so_far[begin : begin + k] += network.table(node)[k - 1]
    return Placement(first, count)


def swarm(network: Network) -> Placement | None:
    """Return a placement as SWARM makes it: as few equal stages as every machine can hold, each
    machine in the stage that is slowest so far; None if no number of layers fits."""
    layers, most = network.machines.layers, network.most
    fits = [k for k in range(1, int(most.min()) + 1) if layers % k == 0]
    if not fits:
        return None
    k = max(fits)
    stages = layers // k
    rates = np.array([network.table(node)[k - 1] for node in range(network.n)])
    so_far = np.zeros(stages)
    first = np.zeros(network.n, np.int64)
    for node in np.argsort(-rates, kind="stable"):
        stage = int(so_far.argmin())
        first[node] = stage * k
        so_far[stage] += rates[node]
    return Placement(first, np.full(network.n, k, np.int64))


def separate(network: Network, *, mixed: bool = False) -> Placement:
    """Return one pipeline after another of machines of one kind, each holding all it may; what does
    not make a whole pipeline is left out, or with ``mixed`` makes pipelines of several kinds (SP+).
    """
    machines, layers = network.machines, network.machines.layers
    first, count = np.zeros(network.n, np.int64), np.zeros(network.n, np.int64)
    most = network.most
    work = [float(len(t) * t[-1]) if len(t) else 0.0 for t in network.tables]
    spare: list[int] = []
    for kind in np.argsort(work)[::-1]:
        spare = _pipelines(np.flatnonzero(machines.kind_of == kind).tolist(), most, layers,
                           first, count) + spare  # fmt: skip
    if mixed:
        _pipelines(spare, most, layers, first, count)
    return Placement(first, count)


def _pipelines(
    nodes: list[int],
    most: "np.typing.NDArray[np.int64]",
    layers: int,
    first: "np.typing.NDArray[np.int64]",
    count: "np.typing.NDArray[np.int64]",
) -> list[int]:
    """Fill whole pipelines front to back and return the nodes left over."""
    left = list(nodes)
    while sum(int(most[node]) for node in left) >= layers:
        at = 0
        while at < layers:
            node = left.pop(0)
            k = min(int(most[node]), layers - at)
            first[node], count[node] = at, k
            at += k
    return left
