"""Judging placements by simulating a spec's traffic on them, and improving the best."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.placement import FRONT, Flow, LayerPlacement, NodeLayers
from gpusched.domain.plan import Plan
from gpusched.planning.layers.candidates import Candidate
from gpusched.planning.layers.flow import Network, solve_flow
from gpusched.planning.layers.improve import improve
from gpusched.planning.layers.spread import spread_flow
from gpusched.sim.pipelines.deploy import plan_metrics, simulate_plan
from gpusched.timing.machines import Placement
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]

RANKED_REQUESTS = 1000
"""Requests of the trace on which placements are compared."""
FINALISTS = 3
"""Placements that local search starts from."""
ATTEMPTS = 50
"""Placements that it tries from each."""
LATENCY_WEIGHT = 0.1
"""Of short answers against requests that meet their objectives."""
SMALLEST_FLOW = 1e-6
"""Share of the largest flow between two places below which there is none."""


@dataclass(frozen=True)
class Trial:
    """A placement and what its simulation gave."""

    candidate: Candidate
    flows: Floats
    figures: dict[str, Any]
    score: float
    routing: str = "iwrr"

    @property
    def depth(self) -> int:
        """Stages: distinct first layers."""
        placement = self.candidate.placement
        return len(np.unique(placement.first[placement.count > 0]))


class Judge:
    """Simulates placements on the first requests of a trace."""

    def __init__(self, draft: Plan, network: Network, trace: Trace, seed: int) -> None:
        self.draft, self.network, self.seed = draft, network, seed
        self.trace = trace.take(np.arange(min(RANKED_REQUESTS, len(trace))))
        self.simulated = 0
        self.cut_short = False
        """Whether the time limit ended the search."""

    def plan_of(self, candidate: Candidate, flows: Floats, routing: str = "iwrr") -> Plan:
        """Return the draft with a placement and its flows."""
        placed = layer_placement(self.network, candidate.placement, flows)
        placed = placed.model_copy(
            update={"partial_inference": candidate.partial_inference, "routing": routing}
        )
        return self.draft.model_copy(update={"layers": placed})

    def trial(self, candidate: Candidate, routing: str = "iwrr") -> Trial:
        """Simulate a placement and score it: the share of requests that meet their objectives, then
        how soon answers end."""
        _, flows = spread_flow(
            self.network, candidate.placement, partial_inference=candidate.partial_inference
        )
        plan = self.plan_of(candidate, flows, routing)
        result = simulate_plan(plan, self.trace, seed=self.seed)
        figures = plan_metrics(plan, self.trace, result)
        self.simulated += 1
        mean_s = figures["e2e_s"]["mean"] if figures["completed"] else np.inf
        served = figures["completed"] / max(figures["requests"], 1)
        prompt = LATENCY_WEIGHT * served / (1 + mean_s / 60)
        return Trial(candidate, flows, figures, figures["slo_attainment"] + prompt, routing)

    def search(
        self, found: list[Candidate], until: float, progress: Callable[[str], None]
    ) -> list[Trial]:
        """Simulate all candidates, then climb from the best ones until the time is up."""
        trials: list[Trial] = []
        for candidate in found:
            if trials and perf_counter() > until:
                self.cut_short = True
                break
            trials.append(self.trial(candidate))
            progress(f"{len(trials)} of {len(found)} placements simulated")
        starts = sorted(trials, key=lambda trial: -trial.score)[:FINALISTS]
        for turn, start in enumerate(starts):
            left = (until - perf_counter()) / (len(starts) - turn)
            self.cut_short |= left <= 0
            if left > 0 and not start.candidate.partial_inference:
                trials += self._climb(start, self.seed + turn, left, progress)
        return trials

    def _climb(
        self, start: Trial, seed: int, time_limit_s: float, progress: Callable[[str], None]
    ) -> list[Trial]:
        """Improve a placement, and return the best one found if it is better."""
        best = start

        def score(placement: Placement) -> float:
            nonlocal best
            flow = solve_flow(self.network, placement).tokens_per_s
            if flow <= 0:
                return -np.inf
            trial = self.trial(Candidate(f"improved: {start.candidate.name}", placement, flow))
            best = trial if trial.score > best.score else best
            progress(f"local search, {self.simulated} placements simulated")
            return trial.score

        placement = start.candidate.placement
        begun = perf_counter()
        improve(
            self.network, placement, score, seed=seed, time_limit_s=time_limit_s, attempts=ATTEMPTS
        )
        self.cut_short |= perf_counter() - begun >= time_limit_s
        return [best] if best is not start else []


def layer_placement(network: Network, placement: Placement, flows: Floats) -> LayerPlacement:
    """Return a placement as a plan's section."""
    names = [*network.machines.names, FRONT]
    origin, to = np.nonzero(flows > SMALLEST_FLOW * max(float(flows.max()), 1e-12))
    used = np.flatnonzero(placement.count)
    order = used[np.lexsort((used, placement.first[used]))]
    return LayerPlacement(
        nodes=tuple(
            NodeLayers(node=names[i], first=int(placement.first[i]), layers=int(placement.count[i]))
            for i in order
        ),
        flows=tuple(
            Flow(ends=(names[i], names[j]), tokens_per_s=round(float(flows[i, j]), 6))
            for i, j in zip(origin, to, strict=True)
        ),
    )
