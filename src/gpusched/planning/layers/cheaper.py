"""Leaving out nodes that the objectives do not need, the dearest first.

A node goes if the rest still meets the objectives in simulation: with the layers it holds already,
where others hold the node's too, or laid anew. Greedy, so a cheaper set may exist.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.layers.candidates import Candidate, candidates
from gpusched.planning.layers.flow import Network, solve_flow
from gpusched.planning.layers.judge import SMALLEST_FLOW, Judge, Trial
from gpusched.timing.machines import Placement

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_TRIED = 8
"""Placements simulated before a node counts as needed."""


def leave_out(
    judge: Judge,
    start: Trial,
    usd_per_hour: Floats,
    meets: Callable[[Trial], bool],
    until: float,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Trial]:
    """Return ``start`` and ever cheaper trials, each without one more node and all meeting the
    objectives.

    Args:
        usd_per_hour: of each node, shape (n,); free nodes stay.
        meets: whether a trial meets the objectives.
        until: when to stop (``perf_counter``); the judge then notes that it was cut short.
    """
    machines = judge.network.machines
    alike = list(
        zip(machines.kind_of.tolist(), machines.regions, usd_per_hour.tolist(), strict=True)
    )
    steps = [start]
    needed = {group for group in alike if group[2] <= 0}
    while True:
        now = steps[-1]
        through = now.flows[:, : judge.network.n].sum(axis=0)
        used = np.flatnonzero(now.candidate.placement.count)
        groups = sorted({alike[i] for i in used} - needed, key=lambda g: (-g[2], g[0], g[1]))
        if not groups:
            return steps
        node = min((int(i) for i in used if alike[i] == groups[0]), key=lambda i: through[i])
        found = None
        for tried, candidate in enumerate(_without(judge.network, now, node)):
            if perf_counter() > until:
                judge.cut_short = True
                return steps
            if tried >= MOST_TRIED:
                break
            trial = judge.trial(candidate, now.routing)
            if meets(trial):
                found = trial
                break
        if found is None:
            needed.add(groups[0])
        else:
            steps.append(found)
            progress(f"{len(used) - 1} nodes are enough")


def _without(network: Network, trial: Trial, node: int) -> Iterator[Candidate]:
    """Placements without a node: the same one, then others, those of like depth first."""
    old = trial.candidate
    count = old.placement.count.copy()
    count[node] = 0
    rest = Placement(old.placement.first, count)
    partial = old.partial_inference
    flow = solve_flow(network, rest, partial_inference=partial).tokens_per_s
    if flow > SMALLEST_FLOW:
        yield replace(old, placement=rest, tokens_per_s=flow)
    kept = np.flatnonzero(count)
    if not len(kept) or network.most[kept].sum() < network.machines.layers:
        return
    found = [c for c in candidates(part_of(network, kept)) if c.tokens_per_s > SMALLEST_FLOW]

    def depth(placement: Placement) -> int:
        return len(np.unique(placement.first[placement.count > 0]))

    found.sort(key=lambda c: abs(depth(c.placement) - trial.depth))
    for candidate in found:
        whole = Placement(np.zeros(network.n, np.int64), np.zeros(network.n, np.int64))
        whole.first[kept], whole.count[kept] = candidate.placement.first, candidate.placement.count
        yield replace(candidate, placement=whole)


def part_of(network: Network, nodes: Ints) -> Network:
    """Return the network of some nodes and the front; rates stay those of the whole fleet."""
    machines = network.machines
    places = np.ix_(np.append(nodes, network.n), np.append(nodes, network.n))
    part = replace(
        machines,
        names=tuple(machines.names[i] for i in nodes),
        regions=tuple(machines.regions[i] for i in nodes),
        kind_of=machines.kind_of[nodes],
        bandwidth_bytes_per_s=machines.bandwidth_bytes_per_s[places],
        latency_s=machines.latency_s[places],
    )
    return Network(part, network.tables, network.links[places])
