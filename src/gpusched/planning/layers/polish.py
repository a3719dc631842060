"""Improving a placement by Helix's mixed-integer program, whole and in parts.

The whole program proves a bound and closes small cases. On more than a few nodes its branch and
bound finds nothing better than a good start, so most of the time goes to parts: all nodes keep their
layers but a few that meet at a place of the pipeline, which the program lays anew (fix and optimise).
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.layers.bounds import Bound
from gpusched.planning.layers.candidates import Candidate
from gpusched.planning.layers.flow import Network, solve_flow
from gpusched.planning.layers.milp import MilpResult, solve_milp, stop_near
from gpusched.timing.machines import Placement

Flags = NDArray[np.bool_]

WHOLE_SHARE = 0.3
"""Of the time for the whole program."""
PART_SHARE = 0.05
"""Of the time for one part, at most."""
FEWEST = 3
"""Nodes laid anew at once; more as long as the program is solved quickly."""
ENOUGH = 0.995
"""Share of the bound at which there is nothing left to gain (Helix's rule)."""
GAIN = 1e-6
"""Relative gain that counts."""


PROGRAM_BOUND = (
    "the program of layers and flows, without partial inference",
    "the program of layers and flows",
)
"""Names of its bound, by whether partial inference is allowed."""


@dataclass(frozen=True)
class Polished:
    """A placement no worse than the one it began with."""

    placement: Placement
    tokens_per_s: float
    bound: float
    """No placement of this form, with or without partial inference as asked, has more flow."""
    parts: int
    """Parts laid anew."""
    seconds: float

    @property
    def gap(self) -> float:
        """What is missing to the bound, as a share of the flow."""
        return max(self.bound - self.tokens_per_s, 0.0) / max(self.tokens_per_s, 1e-12)


def polish(
    network: Network,
    start: Placement,
    *,
    partial_inference: bool = False,
    bound: float = np.inf,
    time_limit_s: float = 60.0,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> Polished:
    """Return the best placement that the program finds from ``start`` within the time.

    Args:
        bound: a flow known not to be exceeded; the search ends close to it.
    """
    begun = perf_counter()

    def left() -> float:
        return time_limit_s - (perf_counter() - begun)

    def solve(limit_s: float, placement: Placement, free: Flags | None = None) -> MilpResult:
        return solve_milp(
            network, partial_inference=partial_inference, start=placement, free=free, bound=bound,
            time_limit_s=limit_s, stop=stop_near(bound, enough=ENOUGH), seed=seed,
        )  # fmt: skip

    flow = solve_flow(network, start, partial_inference=partial_inference).tokens_per_s
    best, proved = start, bound
    if time_limit_s > 0 and flow < bound * (1 - GAIN):
        progress("solving the program of layers and flows")
        found = solve(WHOLE_SHARE * time_limit_s, start)
        if found.placement is not None and found.tokens_per_s > flow:
            best, flow = found.placement, found.tokens_per_s
        proved = max(min(bound, found.bound), flow)
    rng = np.random.default_rng(seed)
    size, parts = min(FEWEST, network.n), 0
    while left() > 0 and flow < ENOUGH * proved:
        free = bottleneck_nodes(network, best, size, rng, partial_inference=partial_inference)
        found = solve(max(min(left(), PART_SHARE * time_limit_s), 0.01), best, free)
        parts += 1
        if found.placement is not None and found.tokens_per_s > flow * (1 + GAIN):
            best, flow = found.placement, found.tokens_per_s
            progress(f"{flow:,.0f} tokens/s of flow")
        # as large as can be solved in time
        if found.solution.status != "optimal":
            size = max(size - 1, FEWEST)
        elif found.solution.seconds < PART_SHARE * time_limit_s / 4:
            if size >= network.n:
                break
            size += 1
    return Polished(best, flow, max(proved, flow), parts, perf_counter() - begun)


def by_program(
    network: Network, found: list[Candidate], bound: Bound, seconds: float, seed: int,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Polished, list[Candidate]]:  # fmt: skip
    """Return what Helix's program makes of the largest flow within the time, and the candidates
    with it, if it is better, in front."""
    best = found[0]
    solved = polish(
        network, best.placement, partial_inference=best.partial_inference,
        bound=bound.tokens_per_s, time_limit_s=seconds, seed=seed, progress=progress,
    )  # fmt: skip
    if solved.tokens_per_s <= best.tokens_per_s * (1 + 1e-9):
        return solved, found
    better = Candidate(
        f"program from: {best.name}", solved.placement, solved.tokens_per_s, best.partial_inference
    )
    return solved, [better, *found]


def bottleneck_nodes(
    network: Network,
    start: Placement,
    size: int,
    rng: np.random.Generator,
    *,
    partial_inference: bool = False,
) -> Flags:
    """Return nodes to lay anew: half of them at a minimum cut of the flow, the others any."""
    flow = solve_flow(network, start, partial_inference=partial_inference)
    ends = {node for link in flow.cut_links for node in link if node < network.n}
    cut = rng.permutation(sorted(ends | set(flow.cut_nodes)))
    free = np.zeros(network.n, np.bool_)
    free[cut[: size - size // 2].astype(np.int64)] = True
    others = rng.permutation(np.flatnonzero(~free))
    free[others[: size - int(free.sum())]] = True
    return free
