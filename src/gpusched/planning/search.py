"""Search for the best deployment: bounds propose, simulation decides."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil

from gpusched.domain.catalog import load_gpu
from gpusched.domain.cluster import embodied_kg_per_hour
from gpusched.domain.plan import Plan
from gpusched.domain.spec import Spec
from gpusched.planning.candidates import Engine, least_work_s, skeleton
from gpusched.sim.deploy import fleet_for
from gpusched.sim.fleet import Role
from gpusched.sim.metrics import attainments, bound_attainments, metrics
from gpusched.sim.result import SimulationResult
from gpusched.sim.simulate import ClosedLoop, simulate
from gpusched.traces.trace import Trace

PAIRS_TRIED = 6
RUNNER_UP_SLACK = 1.5
"""Deployments are sized up to this multiple of the best objective, for the runners-up."""


@dataclass(frozen=True)
class Deployment:
    """Engines, how many replicas of each, and their roles.

    Without roles, one engine is mixed, and of two the first is for prefill.
    """

    engines: tuple[Engine, ...]
    counts: tuple[int, ...]
    roles: tuple[Role, ...] = ()

    def __post_init__(self) -> None:
        if not self.roles:
            roles: tuple[Role, ...] = (
                ("mixed",) if len(self.engines) == 1 else ("prefill", "decode")
            )
            object.__setattr__(self, "roles", roles)

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(n * e.gpus for n, e in zip(self.counts, self.engines, strict=True))

    @property
    def usd_per_hour(self) -> float:
        """Price of all replicas."""
        return sum(n * e.usd_per_hour for n, e in zip(self.counts, self.engines, strict=True))


@dataclass(frozen=True)
class Scored:
    """A simulated deployment."""

    deployment: Deployment
    plan: Plan
    attainment: float
    """Least attainment over the classes, each relative to what it asks: 1 or more is met."""
    by_bound: dict[tuple[str, str], float]
    predicted: dict[str, object] = field(repr=False)

    @property
    def feasible(self) -> bool:
        """Whether every class meets its objective."""
        return self.attainment >= 1.0 - 1e-12

    def figure(self, name: str) -> float:
        """Return a predicted figure."""
        value = self.predicted[name]
        assert isinstance(value, int | float)
        return float(value)

    @property
    def reached(self) -> float:
        """Share that meets the objectives: of sessions where they are what counts, or of requests."""
        counted = (
            "session_attainment" if "session_attainment" in self.predicted else "slo_attainment"
        )
        return self.figure(counted)

    @property
    def warnings(self) -> list[str]:
        """Where the plan or the traffic leaves what was measured."""
        lines = self.predicted["warnings"]
        assert isinstance(lines, list)
        return lines

    @property
    def kg_per_hour(self) -> float:
        """Carbon per hour of the simulated time."""
        return self.figure("carbon_kg") / max(self.figure("simulated_s") / 3600.0, 1e-12)


class Search:
    """Simulates deployments of a spec on a trace, each once."""

    solver = "enumeration, least-work bounds, bisection by simulation"
    counted = "requests"
    """What meets the objectives or not."""

    def __init__(
        self, spec: Spec, trace: Trace, *, seed: int, progress: Callable[[str], None] | None = None
    ) -> None:
        self.spec, self.trace, self.seed = spec, trace, seed
        self.progress = progress
        self.scored: dict[Deployment, Scored] = {}
        users = spec.workload.users
        self.closed_loop = ClosedLoop(users, spec.workload.think_s) if users is not None else None

    def run(self, plan: Plan) -> SimulationResult:
        """Simulate a plan."""
        return simulate(fleet_for(plan), self.trace, closed_loop=self.closed_loop, seed=self.seed)

    def score(self, deployment: Deployment) -> Scored:
        """Return a deployment's simulated figures."""
        if deployment in self.scored:
            return self.scored[deployment]
        plan = self.plan_of(deployment)
        result = self.run(plan)
        predicted = metrics(plan, result)
        shares, by_bound = self.measure(result, predicted)
        relative = min(shares[n] / slo.attainment for n, slo in self.spec.slo.classes.items())
        scored = Scored(deployment, plan, relative, by_bound, predicted)
        self.scored[deployment] = scored
        if self.progress is not None:
            self.progress(f"{len(self.scored)} deployments simulated, last {plan.summary}")
        return scored

    def measure(
        self, result: SimulationResult, predicted: dict[str, object]
    ) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
        """Return the share of each class that meets its bounds, and each single bound.

        A search that counts other things than requests adds their figures to ``predicted``.
        """
        slo, warmup_s = self.spec.slo, self.spec.workload.warmup_s
        shares = attainments(result, slo, warmup_s=warmup_s)
        return shares, bound_attainments(result, slo, warmup_s=warmup_s)

    def plan_of(self, deployment: Deployment) -> Plan:
        """Return a deployment as a plan."""
        pools = tuple(
            engine.pool.model_copy(
                update={"name": self.pool_name(deployment, i), "role": role, "replicas": count}
            )
            for i, (engine, count, role) in enumerate(
                zip(deployment.engines, deployment.counts, deployment.roles, strict=True)
            )
        )
        return skeleton(self.spec, pools)

    def assumptions(self, scored: Scored) -> tuple[str, ...]:
        """Return what the search took for granted about a deployment."""
        return ()

    def pool_name(self, deployment: Deployment, index: int) -> str:
        """Return a pool's role, numbered where several have the same."""
        role = deployment.roles[index]
        same = deployment.roles[: index + 1].count(role)
        return role if deployment.roles.count(role) == 1 else f"{role}-{same}"

    def objective(self, deployment: Deployment) -> float:
        """Return what a deployment is ranked by before simulation: less is better.

        For carbon the embodied part and idle power, a lower bound.
        """
        if self.spec.objective == "gpus":
            return float(deployment.gpus)
        if self.spec.objective == "carbon":
            return sum(
                n * e.gpus * self.idle_kg_per_hour(e)
                for n, e in zip(deployment.counts, deployment.engines, strict=True)
            )
        return deployment.usd_per_hour

    def idle_kg_per_hour(self, engine: Engine) -> float:
        """Return the carbon of an idle GPU of an engine's group for an hour."""
        gpu, cluster = load_gpu(engine.pool.gpu), self.spec.cluster
        idle_kwh = gpu.idle_w / 1e3 * cluster.pue
        return idle_kwh * cluster.kg_per_kwh(engine.group) + embodied_kg_per_hour(gpu)

    def achieved(self, scored: Scored) -> tuple[float, ...]:
        """Return what simulated deployments are ranked by, less being better.

        Ties go to the price, then to fewer pools, then to the higher attainment.
        """
        return (
            *self._objective_and_price(scored),
            len(scored.deployment.engines),
            -scored.attainment,
        )

    def _objective_and_price(self, scored: Scored) -> tuple[float, float]:
        usd = scored.deployment.usd_per_hour
        if self.spec.objective == "gpus":
            return float(scored.deployment.gpus), usd
        if self.spec.objective == "carbon":
            return scored.kg_per_hour, usd
        if self.spec.objective == "goodput":
            return -round(scored.figure("goodput_rps"), 3), usd
        return usd, float(scored.deployment.gpus)

    def least_replicas(self, engine: Engine) -> int:
        """Return a lower bound on replicas of a mixed engine: its least work over the time."""
        prefill_s, decode_s = self.least_work(engine)
        return max(ceil((prefill_s + decode_s) / self.time_s()), 1)

    def least_work(self, engine: Engine) -> tuple[float, float]:
        """Return the least time the trace takes one replica: prefill, decode."""
        return least_work_s(self.trace, engine.timing, self.spec.engine.max_num_seqs)

    def time_s(self) -> float:
        """Return the time within which the share of the work that must be done is done.

        Requests that meet their bounds end within the trace and the longest such answer.
        """
        if self.closed_loop is not None or self.trace.think_s is not None:
            return float("inf")
        bounds = [
            slo.e2e_s
            if slo.e2e_s is not None
            else (slo.ttft_s or 1e9) + (slo.tpot_s or 1e9) * float(self.trace.output_tokens.max())
            for slo in self.spec.slo.classes.values()
        ]
        share = min(slo.attainment for slo in self.spec.slo.classes.values())
        return (self.trace.duration_s + max(bounds)) / share

    def search_mixed(self, engines: list[Engine]) -> None:
        """Find the fewest replicas of each engine, best bounds first, and prune by the best."""
        order = sorted(engines, key=lambda e: self.objective(self.at_least(e)))
        for engine in order:
            low = self.least_replicas(engine)
            if low > engine.max_replicas:
                continue
            high = engine.max_replicas
            if self.spec.objective == "goodput":
                self.score(Deployment((engine,), (high,)))

            def make(count: int, engine: Engine = engine) -> Deployment:
                return Deployment((engine,), (count,))

            self.bisect(low, self.cap(high, make), make)

    def at_least(self, engine: Engine) -> Deployment:
        """Return the deployment at an engine's lower bound."""
        return Deployment((engine,), (self.least_replicas(engine),))

    def best(self) -> Scored | None:
        """Return the best deployment so far that meets the objectives."""
        met = [s for s in self.scored.values() if s.feasible]
        return min(met, key=self.achieved) if met else None

    def cap(self, high: int, make: Callable[[int], Deployment]) -> int:
        """Return the largest count not hopelessly worse than the best so far."""
        best = self.best()
        if best is None or self.spec.objective == "goodput":
            return high
        limit = RUNNER_UP_SLACK * self.objective(best.deployment)
        while high > 1 and self.objective(make(high)) > limit:
            high = min(high - 1, int(high * limit / self.objective(make(high))) + 1)
        return high

    def bisect(self, low: int, high: int, make: Callable[[int], Deployment]) -> Scored | None:
        """Return the least count that meets the objectives, attainment growing with the count.

        Doubles from the lower bound before halving, since small fleets simulate in the same time
        but large ones are seldom needed.
        """
        if low > high:
            return None
        tried, found = low - 1, None
        count = low
        while found is None:
            scored = self.score(make(count))
            if scored.feasible:
                found = count
            elif count == high:
                return None
            else:
                tried, count = count, min(max(count + 1, ceil(count * 1.3)), high)
        while found - tried > 1:
            middle = (tried + found) // 2
            if self.score(make(middle)).feasible:
                found = middle
            else:
                tried = middle
        return self.score(make(found))

    def search_disaggregated(self, engines: list[Engine]) -> None:
        """Size pairs of prefill and decode engines, the most promising pairs first."""
        pairs = []
        for prefill in engines:
            for decode in engines:
                same = prefill.group == decode.group
                budget = prefill.pool.engine.max_num_batched_tokens or 0
                other = decode.pool.engine.max_num_batched_tokens or 0
                if same and budget >= other and not self._dominated(prefill, decode, engines):
                    counts = self._least_pair(prefill, decode)
                    pairs.append(
                        (
                            self.objective(Deployment((prefill, decode), counts)),
                            prefill,
                            decode,
                            counts,
                        )
                    )
        pairs.sort(key=lambda pair: pair[0])
        for _, prefill, decode, counts in pairs[:PAIRS_TRIED]:
            self._climb(prefill, decode, counts)

    def _dominated(self, prefill: Engine, decode: Engine, engines: list[Engine]) -> bool:
        """Prefill pools use the largest budget, decode pools the smallest (more KV cache)."""

        def budgets(engine: Engine) -> list[int]:
            return [
                e.pool.engine.max_num_batched_tokens or 0
                for e in engines
                if e.group == engine.group and e.pool.parallelism == engine.pool.parallelism
            ]

        prefill_budget = prefill.pool.engine.max_num_batched_tokens or 0
        decode_budget = decode.pool.engine.max_num_batched_tokens or 0
        return prefill_budget < max(budgets(prefill)) or decode_budget > min(budgets(decode))

    def _least_pair(self, prefill: Engine, decode: Engine) -> tuple[int, int]:
        time_s = self.time_s()
        prefill_s, _ = self.least_work(prefill)
        _, decode_s = self.least_work(decode)
        return max(ceil(prefill_s / time_s), 1), max(ceil(decode_s / time_s), 1)

    def _climb(self, prefill: Engine, decode: Engine, counts: tuple[int, int]) -> None:
        """Grow the pool whose bound is missed until all are met, then shrink each in turn."""
        x, y = counts
        best = self.best()
        slack = RUNNER_UP_SLACK if self.spec.objective != "goodput" else float("inf")
        limit = slack * self.objective(best.deployment) if best is not None else float("inf")

        def make(x: int, y: int) -> Deployment:
            return Deployment((prefill, decode), (x, y))

        def fits(x: int, y: int) -> bool:
            group = self.spec.cluster.nodes[prefill.group].total_gpus
            most = min(group, self.spec.search.max_gpus or group)
            return make(x, y).gpus <= most and self.objective(make(x, y)) <= limit

        while fits(x, y):
            scored = self.score(make(x, y))
            if scored.feasible:
                break
            missed = {
                bound: self.spec.slo.classes[name].attainment - share
                for (name, bound), share in scored.by_bound.items()
                if share < self.spec.slo.classes[name].attainment
            }
            if "ttft" in missed or not missed:
                x += max(x // 4, 1)
            if "tpot" in missed or "e2e" in missed or not missed:
                y += max(y // 4, 1)
        else:
            return
        while x > 1 and self.score(make(x - 1, y)).feasible:
            x -= 1
        while y > 1 and self.score(make(x, y - 1)).feasible:
            y -= 1
