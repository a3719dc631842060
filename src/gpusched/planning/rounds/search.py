"""Choose prefill and decode workers for sessions: programs propose, the simulator decides.

At each multiple of the offered load that the phases should carry, the cheapest mix of workers (by the
integer program) and the cheapest of every pair of single kinds are candidates; queueing formulas order
them, the trace is replayed on the best, and the share of incremental prefills that the simulation ran on
decode workers goes back into the speeds until it settles.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.plan import Plan
from gpusched.domain.slo import show_s
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError
from gpusched.planning.candidates import Engine, Refusal, enumerate_engines, fitting_engines
from gpusched.planning.rounds.check import check_deployment
from gpusched.planning.rounds.load import RoundLoad, round_load
from gpusched.planning.rounds.program import cheapest_program
from gpusched.planning.rounds.queueing import in_time
from gpusched.planning.rounds.split import (
    Split,
    SplitProblem,
    best_split,
    best_splits,
    capacity_of,
)
from gpusched.planning.rounds.workers import Kind, split_problem, tightest_tpot_s, worker_kinds
from gpusched.planning.search import Deployment, Scored, Search
from gpusched.sim.result import SimulationResult
from gpusched.sim.sessions import session_attainments, sessions_met
from gpusched.traces.trace import Trace

FIRST_LOCAL_SHARE = 0.25
SETTLED = 0.02
MOST_PASSES = 4
HEADROOM = tuple(float(u) for u in np.geomspace(1.0, 8.0, 27))
"""Multiples of the offered load that candidates are sized for, 8 % apart."""
COLOCATED_TRIED = 2
AMPD = "prefix-affinity"


Counts = tuple[tuple[int, ...], tuple[int, ...]]
"""Workers of each kind that prefill, and that decode."""


@dataclass(frozen=True)
class Candidate:
    """A split with its price and what the formulas expect of it."""

    split: Split
    deployment: Deployment
    price: float
    expected: float
    """Share in time by queueing formulas."""


class RoundsSearch(Search):
    """Simulates splits of a cluster between prefill and decode on a trace with sessions."""

    solver = "integer program of splits, queueing formulas, simulation of a shortlist"

    def __init__(
        self, spec: Spec, trace: Trace, *, seed: int, progress: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(spec, trace, seed=seed, progress=progress)
        assert spec.workload.rounds is not None
        self.rounds = spec.workload.rounds
        fixed = self.rounds.local_share
        self.local_share = FIRST_LOCAL_SHARE if fixed is None else fixed
        self.engines, self.refusals = fitting_engines(spec, trace)
        if not self.engines:
            raise InfeasibleError(_none_may("prefill or decode", self.refusals))
        self.load: RoundLoad = round_load(trace, self.engines[-1].timing)
        self.kinds: list[Kind] = []
        self.phase_refusals: list[Refusal] = []
        self.measured: dict[Deployment, float] = {}
        self.passes = 0

    # ---- what is asked

    def search_rounds(self) -> None:
        """Search splits until the share of local prefills settles, then co-located engines.

        Raises:
            InfeasibleError: no kind of worker may serve a phase, or the cluster cannot carry the load.
        """
        if "disaggregated" in self.spec.search.roles:
            for self.passes in range(1, MOST_PASSES + 1):
                self._set_speeds()
                best = self._search_splits()
                measured = self.measured.get(best.deployment, self.local_share)
                if self.rounds.local_share is not None or not np.isfinite(measured):
                    break
                change, self.local_share = abs(measured - self.local_share), measured
                if change < SETTLED:
                    break
        if "mixed" in self.spec.search.roles:
            engines, _ = enumerate_engines(self.spec, self.trace)
            engines.sort(key=lambda engine: self.objective(self.at_least(engine)))
            self.search_mixed(engines[:COLOCATED_TRIED])

    def plan_of(self, deployment: Deployment) -> Plan:
        """Return a deployment as a plan; unless the spec says otherwise, the paper's router serves
        splits and prefix affinity co-located engines."""
        plan = super().plan_of(deployment)
        if "routing" in self.spec.model_fields_set:
            return plan
        routing = "prefix-affinity" if "mixed" in deployment.roles else AMPD
        return plan.model_copy(update={"routing": routing})

    def measure(
        self, result: SimulationResult, predicted: dict[str, object]
    ) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
        """Return the share of each class's sessions, or rounds, that meet its bounds, and each bound."""
        slo, warmup_s = self.spec.slo, self.spec.workload.warmup_s
        met = sessions_met(result, self.trace, slo, warmup_s=warmup_s)
        by_session = session_attainments(met)
        if not self.spec.workload.counts_sessions:
            predicted["attainment_of_sessions"] = by_session
            return super().measure(result, predicted)
        counts = {
            name: len(next(ok for (n, _), ok in met.items() if n == name)) for name in by_session
        }
        total = max(sum(counts.values()), 1)
        predicted["session_attainment"] = (
            sum(by_session[name] * counts[name] for name in counts) / total
        )
        return by_session, {key: float(ok.mean()) for key, ok in met.items() if len(ok)}

    def score(self, deployment: Deployment) -> Scored:
        """Return a deployment's simulated figures; splits are checked first by independent code."""
        if deployment not in self.scored and "prefill" in deployment.roles:
            check_deployment(self.spec, self.trace, deployment)
        return super().score(deployment)

    def run(self, plan: Plan) -> SimulationResult:
        """Simulate a plan."""
        result = super().run(plan)
        self._last_local_share = getattr(result, "local_prefill_share", float("nan"))
        return result

    # ---- candidates

    def _set_speeds(self) -> None:
        self.kinds, self.phase_refusals = worker_kinds(
            self.spec, self.trace, self.load, self.engines, self.local_share
        )
        for phase in ("prefill", "decode"):
            if not any(getattr(kind, f"{phase}_speed") for kind in self.kinds):
                raise InfeasibleError(_none_may(phase, [*self.phase_refusals, *self.refusals]))

    def problem(self, gpus: int | None = None) -> SplitProblem:
        """Return the program of the cluster, or of so many GPUs."""
        limit = self.spec.search.max_gpus
        return split_problem(self.spec, self.kinds, limit if gpus is None else gpus)

    def _search_splits(self) -> Scored:
        """Simulate the candidates of the present speeds and return the best split so far."""
        if self.spec.objective == "goodput":
            for candidate in self._of_all_gpus():
                self._simulate(candidate)
        else:
            self._cheapest_in_time()
        splits = [s for s in self.scored.values() if "prefill" in s.deployment.roles]
        met = [s for s in splits if s.feasible]
        return min(met, key=self.achieved) if met else max(splits, key=lambda s: s.attainment)

    def _of_all_gpus(self) -> list[Candidate]:
        """Return the best splits of the whole cluster and the best of each pair of kinds."""
        problem = self.problem()
        splits = best_splits(problem, self.rounds.shortlist)
        splits += [
            s for s in self._pairs_of_all(problem) if s.counts not in {t.counts for t in splits}
        ]
        ranked = sorted(map(self._candidate, splits), key=lambda c: (-c.expected, c.split.load))
        return ranked[: self.rounds.shortlist]

    def _pairs_of_all(self, problem: SplitProblem) -> list[Split]:
        """Return the best split of the whole cluster for each pair of kinds."""
        found = []
        for p, d in self._pairs():
            pre, dec = np.zeros_like(problem.prefill_speed), np.zeros_like(problem.decode_speed)
            pre[p], dec[d] = problem.prefill_speed[p], problem.decode_speed[d]
            values = {**problem.__dict__, "prefill_speed": pre, "decode_speed": dec}
            try:
                found.append(best_split(SplitProblem(**values)))
            except InfeasibleError:
                continue
        return found

    def _pairs(self) -> list[tuple[int, int]]:
        return [
            (p, d)
            for p, prefill in enumerate(self.kinds)
            for d, decode in enumerate(self.kinds)
            if prefill.prefill_speed and decode.decode_speed
        ]

    def _cheapest_in_time(self) -> None:
        """Simulate candidates from the cheapest up, by bisection over price, and trim the best."""
        by_price: dict[float, list[Candidate]] = {}
        for candidate in self._cheapest_candidates():
            by_price.setdefault(round(candidate.price, 9), []).append(candidate)
        prices = sorted(by_price)
        left = self.rounds.shortlist

        def meets(index: int) -> bool:
            nonlocal left
            best_first = sorted(by_price[prices[index]], key=lambda c: -c.expected)
            for candidate in best_first[:2]:
                left -= 1
                if self._simulate(candidate).feasible:
                    return True
            return False

        low, high = -1, len(prices)
        start = next(
            (
                i
                for i, price in enumerate(prices)
                if any(c.expected >= self._asked() for c in by_price[price])
            ),
            len(prices) - 1,
        )
        probe, stride = start, 1
        while high - low > 1 and left > 0:
            if meets(probe):
                high = probe
                probe = max(probe - stride, low + 1) if low < 0 else (low + high) // 2
            else:
                low = probe
                probe = min(probe + stride, high - 1) if high == len(prices) else (low + high) // 2
            stride *= 2
        best = self.best()
        if best is not None and "prefill" in best.deployment.roles:
            self._trim(best.deployment)

    def _asked(self) -> float:
        return min(slo.attainment for slo in self.spec.slo.classes.values())

    def _cheapest_candidates(self) -> list[Candidate]:
        """Return the cheapest splits for each multiple of the load that the cluster can carry."""
        problem = self.problem()
        whole = best_split(problem)
        if whole.capacity < 1.0:
            raise InfeasibleError(_too_small(self.spec, problem, whole, self.load))
        splits: dict[Counts, Split] = {whole.counts: whole}
        for headroom in HEADROOM:
            if headroom > whole.capacity:
                break
            for x, y in chain(
                self._cheapest(problem, headroom), self._cheapest_pairs(problem, headroom)
            ):
                least, most = capacity_of(problem, x, y)
                splits.setdefault((x, y), Split(x, y, least, most, whole.capacity))
        return [self._candidate(split) for split in splits.values()]

    def _prices(self) -> NDArray[np.float64]:
        return np.array([self.objective(Deployment((kind.prefill,), (1,))) for kind in self.kinds])

    def _cheapest(self, problem: SplitProblem, headroom: float) -> Iterator[Counts]:
        """Yield the cheapest mix of workers that carries a multiple of the load."""
        program, prefill, decode = cheapest_program(problem, self._prices(), headroom)
        values = program.solve(time_limit_s=2.0).values
        if len(values):
            x, y = (np.rint(values[v]).astype(np.int64) for v in (prefill, decode))
            yield tuple(x.tolist()), tuple(y.tolist())

    def _cheapest_pairs(self, problem: SplitProblem, headroom: float) -> Iterator[Counts]:
        """Yield for each pair of kinds the fewest workers that carry a multiple of the load."""
        for p, d in self._pairs():
            x, y = np.zeros(len(self.kinds), np.int64), np.zeros(len(self.kinds), np.int64)
            x[p] = ceil(headroom * problem.prefill_load / problem.prefill_speed[p] - 1e-9)
            y[d] = ceil(headroom * problem.decode_load / problem.decode_speed[d] - 1e-9)
            used = np.bincount(problem.group, (x + y) * problem.size, len(problem.gpus))
            if (used <= problem.gpus).all():
                yield tuple(x.tolist()), tuple(y.tolist())

    def _candidate(self, split: Split) -> Candidate:
        deployment = deployment_of(self.kinds, split)
        slos = self.spec.slo.classes.values()
        expected = in_time(
            self.load,
            self.kinds,
            split,
            ttft_s=min((slo.ttft_s or np.inf) for slo in slos),
            tpot_s=tightest_tpot_s(self.spec),
            local_share=self.local_share,
            by_session=self.spec.workload.counts_sessions,
        )
        return Candidate(split, deployment, self.objective(deployment), expected)

    def _simulate(self, candidate: Candidate) -> Scored:
        scored = self.score(candidate.deployment)
        self.measured.setdefault(candidate.deployment, self._last_local_share)
        return scored

    def _trim(self, deployment: Deployment) -> None:
        """Take workers away, one at a time, as long as the objectives are met."""
        for i in sorted(range(len(deployment.counts)), key=lambda i: -deployment.engines[i].gpus):
            while deployment.counts[i] > 1:
                counts = tuple(n - (j == i) for j, n in enumerate(deployment.counts))
                fewer = Deployment(deployment.engines, counts, deployment.roles)
                scored = self.score(fewer)
                self.measured.setdefault(fewer, self._last_local_share)
                if not scored.feasible:
                    break
                deployment = fewer

    def assumptions(self, scored: Scored) -> tuple[str, ...]:
        """Return the load that the split was sized for."""
        if "prefill" not in scored.deployment.roles:
            return ()
        load = self.load
        return (
            f"offered load: {load.first_per_s:.3g} first and {load.later_per_s:.3g} incremental prefills "
            f"a second, {load.decode_tokens_per_s:.4g} decoded tokens a second, while a quarter "
            "of the rounds arrive fastest",
            f"{self.local_share:.1%} of incremental prefills run on decode workers "
            + (
                "(given)"
                if self.rounds.local_share is not None
                else f"({self.passes} passes of simulation)"
            ),
        )

    # ---- what is proven

    def split_of(self, deployment: Deployment) -> Split | None:
        """Return a deployment's split and the bound on its load; nothing for co-located engines."""
        if "prefill" not in deployment.roles:
            return None
        x, y = ([0] * len(self.kinds) for _ in range(2))
        for engine, count, role in zip(
            deployment.engines, deployment.counts, deployment.roles, strict=True
        ):
            for k, kind in enumerate(self.kinds):
                if engine is getattr(kind, role):
                    (x if role == "prefill" else y)[k] += count
        problem = (
            self.problem(deployment.gpus) if len(self.spec.cluster.nodes) == 1 else self.problem()
        )
        least, most = capacity_of(problem, x, y)
        return Split(tuple(x), tuple(y), least, most, best_split(problem).bound)

    def least_price(self) -> float:
        """Return a bound on the price of splits that carry the offered load on average."""
        problem = self.problem()
        program, *_ = cheapest_program(problem, self._prices(), 1.0)
        return program.solve(time_limit_s=5.0).bound


def deployment_of(kinds: list[Kind], split: Split) -> Deployment:
    """Return a split as engines, counts and roles."""
    chosen: list[tuple[Engine, int, str]] = [
        (getattr(kind, role), count, role)
        for role, counts in (("prefill", split.prefill), ("decode", split.decode))
        for kind, count in zip(kinds, counts, strict=True)
        if count
    ]
    engines, counts, roles = zip(*chosen, strict=True)
    return Deployment(engines, counts, roles)


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


def _too_small(spec: Spec, problem: SplitProblem, whole: Split, load: RoundLoad) -> str:
    pre = float(np.asarray(whole.prefill) @ problem.prefill_speed)
    dec = float(np.asarray(whole.decode) @ problem.decode_speed)
    gpus = int(problem.gpus.sum())
    phase = "prefill" if pre <= dec else "decode"
    return (
        f"the constraint is the number of GPUs: the best split of {gpus} carries "
        f"{whole.capacity:.1%} of the load ({load.rounds_per_s:.3g} rounds a second, "
        f"{load.decode_tokens_per_s:.4g} decoded tokens a second), held up by {phase} workers. "
        f"About {ceil(gpus / whole.capacity)} GPUs of this kind would carry it with nothing to spare; "
        f"or lower the rate (workload.rate_scale), or allow a longer TPOT than "
        f"{show_s(min(tightest_tpot_s(spec), 1e6))}."
    )
