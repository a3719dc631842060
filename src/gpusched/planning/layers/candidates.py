"""Placements worth simulating, from deep and fast on paper to shallow and quick to answer.

The flow of a placement knows nothing of queues, nor of the time that a token takes through many
stages, so the largest flow need not serve best. These placements span what trades off.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gpusched.planning.layers import baselines
from gpusched.planning.layers.flow import Network, solve_flow
from gpusched.planning.layers.regions import RegionStages
from gpusched.planning.layers.stages import StageSets, best_stages, place_stages
from gpusched.timing.machines import Placement

MANY_KINDS = 4
DEPTHS = 12
LINK_LIMITS = 0.999
"""Where the links take away more of the flow than this leaves, regions are placed one by one."""


@dataclass(frozen=True)
class Candidate:
    """A placement, how it was made, and its maximum flow."""

    name: str
    placement: Placement
    tokens_per_s: float
    partial_inference: bool = False


def candidates(
    network: Network, *, seed: int = 0, progress: Callable[[str], None] = lambda message: None
) -> list[Candidate]:
    """Return distinct placements that carry a flow, the largest first."""
    found: dict[bytes, Candidate] = {}

    def add(name: str, placement: Placement | None, partial: bool = False) -> float:
        if placement is None:
            return 0.0
        flow = solve_flow(network, placement, partial_inference=partial).tokens_per_s
        key = placement.first.tobytes() + placement.count.tobytes()
        if flow > 0 and key not in found:
            found[key] = Candidate(name, placement, flow, partial)
            progress(f"{len(found)} placements")
        return flow

    many_regions = len(set(network.machines.regions)) > 1
    least = 1.0
    for deepest, flow, placement in stage_candidates(network):
        real = add(f"stages, at most {deepest}" if deepest else "stages", placement)
        least = min(least, real / flow)
    if many_regions and least < LINK_LIMITS:
        for name, placement in region_candidates(network):
            add(name, placement)
    add("SWARM", baselines.swarm(network))
    add("PETALS", baselines.petals(network, seed=seed), partial=True)
    add("separate pipelines", baselines.separate(network))
    add("separate and mixed pipelines", baselines.separate(network, mixed=True))
    return sorted(found.values(), key=lambda candidate: -candidate.tokens_per_s)


def stage_candidates(network: Network) -> Iterator[tuple[int | None, float, Placement]]:
    """Stages on links that never limit, fewer and fewer of them."""
    machines = network.machines
    numbers = np.bincount(machines.kind_of, minlength=len(machines.kinds))
    widest = 4 if len(machines.kinds) < MANY_KINDS else 3
    sets = StageSets(network.tables, numbers, widest=widest)
    found = best_stages(sets, machines.layers)
    deepest = None
    for _ in range(DEPTHS):
        if found is None:
            return
        flow, stages = found
        yield deepest, flow, place_stages(stages, machines.kind_of)
        if len(stages) <= 1:
            return
        deepest = min(len(stages) - 1, round(len(stages) * 0.9))
        found = best_stages(sets, machines.layers, deepest=deepest)


def region_candidates(network: Network) -> Iterator[tuple[str, Placement]]:
    """Stages that keep each region's layers together."""
    deepest: int | None = None
    for _ in range(3):
        regions = RegionStages(network, deepest=deepest)
        depth = 0
        for order in regions.orders():
            found = regions.best(order)
            if found is not None:
                placement = found[1]
                names = ", ".join(regions.names[region] for region in order)
                limit = f", at most {deepest} stages" if deepest else ""
                yield f"{names}{limit}", placement
                if len(order) == len(regions.names):
                    depth = max(depth, len(np.unique(placement.first[placement.count > 0])))
        if depth <= 2:
            return
        deepest = round(depth * 0.75)
