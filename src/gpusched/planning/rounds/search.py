"""Choose prefill and decode workers for sessions: programs propose, the simulator decides.

The share of incremental prefills that a simulation ran on decode workers goes back into the speeds of
workers, and the search is repeated until it settles.
"""

from collections.abc import Callable

import numpy as np

from gpusched.domain.plan import Plan
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError
from gpusched.planning.candidates import Refusal, enumerate_engines, fitting_engines
from gpusched.planning.rounds.check import check_deployment
from gpusched.planning.rounds.load import round_load
from gpusched.planning.rounds.proposals import Proposal, Proposals
from gpusched.planning.rounds.split import Split
from gpusched.planning.rounds.workers import worker_kinds
from gpusched.planning.search import Deployment, Scored, Search
from gpusched.sim.result import SimulationResult
from gpusched.sim.sessions import session_attainments, sessions_met
from gpusched.traces.trace import Trace

FIRST_LOCAL_SHARE = 0.25
SETTLED = 0.02
MOST_PASSES = 4
COLOCATED_TRIED = 4
AT_A_PRICE = 3
"""Proposals simulated at one price before a higher one is tried."""


class RoundsSearch(Search):
    """Simulates splits of a cluster between prefill and decode on a trace with sessions."""

    solver = "integer program of splits, queueing formulas, simulation of a shortlist"

    def __init__(
        self, spec: Spec, trace: Trace, *, seed: int, progress: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(spec, trace, seed=seed, progress=progress)
        assert spec.workload.rounds is not None
        self.rounds = spec.workload.rounds
        self.counted = self.rounds.count
        fixed = self.rounds.local_share
        self.local_share = FIRST_LOCAL_SHARE if fixed is None else fixed
        self.engines, self.refusals = fitting_engines(spec, trace)
        if not self.engines:
            raise InfeasibleError(_none_may("prefill or decode", self.refusals))
        self.load = round_load(trace, self.engines[-1].timing)
        self.passes = 0
        self.proposals: Proposals | None = None

    def search_rounds(self, *, colocated: bool = True) -> None:
        """Search splits until the share of local prefills settles, then co-located engines.

        Without ``colocated`` the latter are left out whatever the spec says.

        Raises:
            InfeasibleError: no kind of worker may serve a phase, or the cluster cannot carry the load.
        """
        if "disaggregated" in self.spec.search.roles:
            settled = False
            while not settled and self.passes < MOST_PASSES:
                self.passes += 1
                self.proposals = self._proposals()
                measured = _local_share(self._search_splits(self.proposals))
                if self.rounds.local_share is not None or measured is None:
                    break
                settled = abs(measured - self.local_share) < SETTLED
                if not settled:
                    self.local_share = measured
        if colocated and "mixed" in self.spec.search.roles:
            engines, _ = enumerate_engines(self.spec, self.trace)
            engines.sort(key=lambda engine: self.objective(self.at_least(engine)))
            self.search_mixed(engines[:COLOCATED_TRIED])

    def plan_of(self, deployment: Deployment) -> Plan:
        """Return a deployment as a plan.

        Unless the spec says otherwise, AMPD's router and its order of prompts serve splits, and prefix
        affinity co-located engines.
        """
        plan = super().plan_of(deployment)
        mixed = "mixed" in deployment.roles
        if "routing" not in self.spec.model_fields_set:
            plan = plan.model_copy(update={"routing": "prefix-affinity" if mixed else "ampd"})
        if mixed or "batching" in self.spec.engine.model_fields_set:
            return plan
        pools = tuple(
            pool.model_copy(
                update={"engine": pool.engine.model_copy(update={"batching": "on-time"})}
            )
            if pool.role == "prefill"
            else pool
            for pool in plan.pools
        )
        return plan.model_copy(update={"pools": pools})

    def measure(
        self, result: SimulationResult, predicted: dict[str, object]
    ) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
        """Return the share of each class's sessions, or rounds, that meet its bounds, and each bound."""
        slo, warmup_s = self.spec.slo, self.spec.workload.warmup_s
        met = sessions_met(result, self.trace, slo, warmup_s=warmup_s)
        shares = session_attainments(met)
        sizes = {name: len(ok) for (name, _), ok in met.items()}
        in_time = sum(shares[name] * size for name, size in sizes.items())
        attained = in_time / max(sum(sizes.values()), 1)
        if not self.spec.workload.counts_sessions:
            predicted["attainment_of_sessions"] = attained
            return super().measure(result, predicted)
        predicted["session_attainment"] = attained
        return shares, {key: float(ok.mean()) for key, ok in met.items() if len(ok)}

    def score(self, deployment: Deployment) -> Scored:
        """Return a deployment's simulated figures; splits are checked first by independent code."""
        if deployment not in self.scored and "prefill" in deployment.roles:
            check_deployment(self.spec, self.trace, deployment)
        return super().score(deployment)

    def assumptions(self, scored: Scored) -> tuple[str, ...]:
        """Return the load that a split was sized for."""
        if "prefill" not in scored.deployment.roles:
            return ()
        load, given = self.load, self.rounds.local_share is not None
        found = "given" if given else f"simulated, {self.passes} passes"
        return (
            f"offered load: {load.first_per_s:.3g} first and {load.later_per_s:.3g} incremental prefills "
            f"a second, {load.decode_tokens_per_s:.4g} decoded tokens a second, while a quarter of the "
            "rounds arrive fastest",
            f"{self.local_share:.1%} of incremental prefills run on decode workers ({found})",
            f"sessions under way hold {load.held_tokens / 1e6:.3g} million tokens of KV cache, think times "
            f"included; the decode workers have room for {self._room_tokens(scored) / 1e6:.3g} million, "
            "the longest unused history goes first",
        )

    def _room_tokens(self, scored: Scored) -> int:
        deployment = scored.deployment
        return sum(
            engine.kv_tokens * count
            for engine, count, role in zip(
                deployment.engines, deployment.counts, deployment.roles, strict=True
            )
            if role == "decode"
        )

    def split_of(self, scored: Scored) -> Split | None:
        """Return a deployment's split and the bound on its load; nothing for co-located engines."""
        if self.proposals is None or "prefill" not in scored.deployment.roles:
            return None
        return self.proposals.split_of(scored.deployment)

    def time_s(self) -> float:
        """Return the time within which the share of the work that must be done is done.

        Sessions in time end no later than their bounds and think times add up to.
        """
        trace, slos = self.trace, self.spec.slo.classes.values()
        ttft_s = max((slo.ttft_s or slo.e2e_s or np.inf) for slo in slos)
        tpot_s = max((slo.tpot_s or slo.e2e_s or np.inf) for slo in slos)
        round_s = ttft_s + tpot_s * (trace.output_tokens - 1)
        if trace.think_s is not None:
            round_s = round_s + trace.think_s
        ends_s = np.zeros(self.load.sessions)
        np.maximum.at(ends_s, self.load.session, trace.arrival_s)
        ends_s += np.bincount(self.load.session, round_s, self.load.sessions)
        return float(ends_s.max()) / min(slo.attainment for slo in slos)

    def least_price(self) -> float:
        """Return a bound on the price: of splits that carry the mean load of the longest time that the
        objectives leave, and of the least work of co-located engines."""
        bounds = []
        if self.proposals is not None:
            mean_rps = len(self.trace) / self.time_s()
            bounds.append(self.proposals.least_price(mean_rps / self.load.rounds_per_s))
        if "mixed" in self.spec.search.roles:
            bounds += [self.objective(self.at_least(engine)) for engine in self.engines]
        return min(bounds)

    def _proposals(self) -> Proposals:
        kinds, refusals = worker_kinds(
            self.spec, self.trace, self.load, self.engines, self.local_share
        )
        for phase in ("prefill", "decode"):
            if not any(getattr(kind, f"{phase}_speed") for kind in kinds):
                raise InfeasibleError(_none_may(phase, [*refusals, *self.refusals]))
        prices = [self.objective(Deployment((kind.prefill,), (1,))) for kind in kinds]
        return Proposals(self.spec, self.load, kinds, np.array(prices), self.local_share)

    def _search_splits(self, proposals: Proposals) -> Scored:
        """Simulate proposals and return the best split so far, or the nearest to one."""
        if self.spec.objective == "goodput":
            for proposal in proposals.of_all_gpus(self.rounds.shortlist):
                self.score(proposal.deployment)
            self._exchange(proposals)
        else:
            self._search_prices(proposals.cheapest())
        splits = [s for s in self.scored.values() if "prefill" in s.deployment.roles]
        met = [s for s in splits if s.feasible]
        return min(met, key=self.achieved) if met else max(splits, key=lambda s: s.attainment)

    def _search_prices(self, proposals: list[Proposal]) -> None:
        """Find the least price at which a proposal meets the objectives, and trim what is found.

        Starts where the formulas expect success and strides from there, then bisects.
        """
        levels: dict[float, list[Proposal]] = {}
        for proposal in proposals:
            levels.setdefault(round(proposal.price, 9), []).append(proposal)
        prices = sorted(levels)
        left = self.rounds.shortlist

        def meets(index: int) -> bool:
            nonlocal left
            for proposal in levels[prices[index]][:AT_A_PRICE]:
                left -= 1
                scored = self.score(proposal.deployment)
                if scored.feasible:
                    self._trim(scored.deployment)
                    return True
            return False

        asked = min(slo.attainment for slo in self.spec.slo.classes.values())
        hopeful = (i for i, p in enumerate(prices) if levels[p][0].expected >= asked)
        low, high, at, stride = -1, len(prices), next(hopeful, len(prices) - 1), 1
        while high - low > 1 and left > 0:
            if meets(at):
                high = at
            else:
                low = at
            if high == len(prices):
                at = min(low + stride, high - 1)
            elif low < 0:
                at = max(high - stride, 0)
            else:
                at = (low + high) // 2
            stride *= 2

    def _exchange(self, proposals: Proposals) -> None:
        """Give GPUs of the best split to other workers while more sessions are in time for it.

        The most expected of a split's neighbours are simulated, the first better one is the next split.
        """

        def rank(scored: Scored) -> tuple[float, float]:
            return scored.reached, scored.figure("goodput_rps")

        best = max((s for s in self.scored.values() if "prefill" in s.deployment.roles), key=rank)
        left, improved = self.rounds.shortlist, True
        while improved and left > 0:
            improved = False
            for proposal in proposals.neighbours(best.deployment)[: max(left // 2, 1)]:
                if proposal.deployment in self.scored:
                    continue
                left -= 1
                scored = self.score(proposal.deployment)
                if rank(scored) > rank(best):
                    best, improved = scored, True
                    break

    def _trim(self, deployment: Deployment) -> None:
        """Take workers away, one at a time, as long as the objectives are met."""
        for i in sorted(range(len(deployment.counts)), key=lambda i: -deployment.engines[i].gpus):
            while deployment.counts[i] > 1:
                counts = tuple(n - (j == i) for j, n in enumerate(deployment.counts))
                fewer = Deployment(deployment.engines, counts, deployment.roles)
                if not self.score(fewer).feasible:
                    break
                deployment = fewer


def _local_share(scored: Scored) -> float | None:
    """Return the share of incremental prefills that ran on decode workers; None if not placed."""
    figures = scored.predicted.get("rounds")
    share = figures.get("local_prefill_share") if isinstance(figures, dict) else None
    return float(share) if share is not None else None


def _none_may(phase: str, refusals: list[Refusal]) -> str:
    kinds = {"prefill": ("ttft", "memory"), "decode": ("tpot", "memory")}.get(phase, ("memory",))
    relevant = [r for r in refusals if r.kind in kinds]
    if not relevant:
        return (
            "no engine without pipeline stages fits a node; planning rounds uses tensor parallelism "
            "within nodes: widen search.tensor_parallel_sizes"
        )
    latency = [r for r in relevant if r.kind != "memory"]
    nearest = min(latency or relevant, key=lambda r: r.severity)
    masks = {"memory": "memory", "ttft": "the TTFT bound", "tpot": "the TPOT bound"}
    return (
        f"no kind of worker may {phase}; the constraint is {masks[nearest.kind]}. Nearest: "
        f"{nearest.label}: {nearest.reason}. To make it feasible, {nearest.remedy}."
    )
