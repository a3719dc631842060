"""Policies of scaling on the cells of a question: simulated whole, measured, beside the optimum."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError, InputError, unknown_name
from gpusched.planning.capacity.anticipating import Anticipating
from gpusched.planning.capacity.batch_queue import BySignal, IntoValleys
from gpusched.planning.capacity.cells import Cell, Question
from gpusched.planning.capacity.clairvoyant import fluid_bound, keep_through_gaps
from gpusched.planning.capacity.plan_following import ByUtilisation, Immediate, InstancePlan
from gpusched.planning.capacity.reactive import PodAutoscaler, Threshold
from gpusched.planning.capacity.rolling_plan import RollingPlan, Settings, rolling_plan
from gpusched.sim.elastic import (
    Controller,
    ElasticResult,
    Limits,
    ReleaseRule,
    simulate_elastic,
)
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
HOUR_S = 3600.0
NIW_BUFFER = 0.1
"""Share of the last hour's deferrable tokens that SageServe adds to the forecast."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A way to scale, and its one knob: what it trades hours for attainment with."""

    name: str
    summary: str
    knob: str
    value: float
    tried: tuple[float, ...]
    """Values to try where attainment is to be made equal."""


_ALL = (
    Policy("anticipating", "forecast of when a start is ready, tokens of now, deadlines and late "
           "first tokens; fewest instances that suit all", "floor of the factor", 1.0, (0.9, 1.0, 1.1, 1.2)),
    Policy("lt-i", "hourly plan, at once (SageServe)", "factor", 1.0, (0.9, 1.0, 1.1, 1.2, 1.35)),
    Policy("lt-u", "hourly plan, as utilisation asks (SageServe)", "factor", 1.0,
           (0.9, 1.0, 1.15, 1.3)),
    Policy("lt-ua", "the same, and beyond the plan in a burst (SageServe)", "factor", 1.0,
           (0.9, 1.0, 1.15, 1.3)),
    Policy("threshold", "one instance more or fewer by utilisation", "high", 0.7,
           (0.3, 0.4, 0.5, 0.6, 0.7)),
    Policy("hpa", "to a target utilisation (horizontal pod autoscaler)", "target", 0.6,
           (0.3, 0.45, 0.6, 0.75, 0.9)),
    Policy("keda", "to a target of requests for each instance (KEDA)", "target", 32.0,
           (8.0, 16.0, 32.0, 48.0, 60.0)),
    Policy("siloed", "threshold, interactive and deferrable requests on fleets of their own", "high",
           0.7, (0.3, 0.4, 0.5, 0.6, 0.7)),
    Policy("clairvoyant", "demand known ahead, deferrable work into valleys", "factor", 1.0,
           (0.9, 1.0, 1.1, 1.2)),
)  # fmt: skip
POLICIES = {policy.name: policy for policy in _ALL}


def policy(name: str) -> Policy:
    """Return a policy by name.

    Raises:
        InputError: no such policy.
    """
    if name not in POLICIES:
        raise InputError(unknown_name("scaling policy", name, POLICIES))
    return POLICIES[name]


@dataclass(frozen=True)
class CellOutcome:
    """What became of one cell. Arrays have one entry a request that counts: those deferred past the
    end are left out, and charged for."""

    model: int
    region: int
    runs: tuple[ElasticResult, ...]
    """One, or one a silo."""
    tier: NDArray[np.int16]
    met: NDArray[np.bool_]
    arrival_s: Floats
    left_hours: float
    """Instance-hours that the work left at the end takes at full rate."""


@dataclass(frozen=True)
class Outcome:
    """A policy on all cells."""

    policy: str
    knob: float
    question: Question
    cells: tuple[CellOutcome, ...]
    plan: RollingPlan | None = None

    @property
    def attainment(self) -> dict[str, float]:
        """Share of each tier's requests that meet their objective."""
        tier = np.concatenate([cell.tier for cell in self.cells])
        met = np.concatenate([cell.met for cell in self.cells])
        return {
            name: float(met[tier == k].mean()) if (tier == k).any() else 1.0
            for k, name in enumerate(self.question.spec.tiers)
        }

    @property
    def meets(self) -> bool:
        """Whether every tier has the attainment it asks for."""
        return all(
            self.attainment[name] >= tier.attainment
            for name, tier in self.question.spec.tiers.items()
        )

    @property
    def instance_hours(self) -> float:
        """Paid hours of all instances, and those of the work left at the end."""
        return sum(_hours(cell) for cell in self.cells)

    @property
    def gpu_hours(self) -> float:
        """The same in GPUs."""
        models = self.question.spec.models
        return sum(_hours(cell) * models[cell.model].gpus for cell in self.cells)

    @property
    def usd(self) -> float:
        """Cost, with what spot instances earn taken off."""
        spec = self.question.spec
        total = 0.0
        for cell in self.cells:
            price = spec.usd_per_instance_hour(cell.model, cell.region)
            earned = spec.spot.usd_share if spec.spot else 0.0
            spot_s = sum(run.spot_s for run in cell.runs)
            total += price * (_hours(cell) - earned * spot_s / HOUR_S)
        return total

    @property
    def wasted_share(self) -> float:
        """Share of paid time in which instances were starting or draining."""
        runs = [run for cell in self.cells for run in cell.runs]
        return sum(run.wasted_s for run in runs) / max(sum(run.instance_s for run in runs), 1e-9)

    def figures(self) -> dict[str, object]:
        """Return what is reported, plain."""
        runs = [run for cell in self.cells for run in cell.runs]
        return {
            "policy": self.policy,
            "knob": self.knob,
            "gpu_hours": self.gpu_hours,
            "instance_hours": self.instance_hours,
            "cost_usd": self.usd,
            "slo_attainment": self.attainment,
            "meets_objectives": self.meets,
            "scaling_waste": self.wasted_share,
            "starts": sum(run.starts for run in runs),
            "spot_hours": sum(run.spot_s for run in runs) / HOUR_S,
            "requests": sum(len(cell.tier) for cell in self.cells),
            "decisions": dict(Counter(r for run in runs for r in run.reasons).most_common(12)),
        }


def _hours(cell: CellOutcome) -> float:
    return sum(run.instance_hours for run in cell.runs) + cell.left_hours


class Runner:
    """Runs policies on one question; plans are made once for each setting."""

    def __init__(self, question: Question, *, seed: int = 0) -> None:
        self.question, self.seed = question, seed
        self._plans: dict[tuple[float, bool], RollingPlan] = {}

    def run(
        self, name: str, knob: float | None = None, progress: Callable[[str], None] | None = None
    ) -> Outcome:
        """Simulate a policy on all cells.

        Raises:
            InputError: no such policy, or the knob's value is out of range.
            InfeasibleError: a plan does not fit into the regions.
        """
        chosen = policy(name)
        value = chosen.value if knob is None else knob
        if not value > 0:
            raise InputError(f"{name}: {chosen.knob} must be above 0, got {value:g}")
        plan = self._plan_for(name, value)
        cells = []
        for index, cell in enumerate(self.question.cells):
            trace = cell.trace if plan is None else self._rerouted(index, plan)
            cells.append(self._run_cell(name, value, cell, trace, plan, progress))
        return Outcome(name, value, self.question, tuple(cells), plan)

    def _plan_for(self, name: str, factor: float) -> RollingPlan | None:
        if name == "anticipating":
            return self._plan(1.0, hourly=False)
        if name in ("lt-i", "lt-u", "lt-ua"):
            return self._plan(factor, hourly=True)
        return None

    def _plan(self, factor: float, *, hourly: bool) -> RollingPlan:
        if (factor, hourly) in self._plans:
            return self._plans[factor, hourly]
        question, spec = self.question, self.question.spec
        step_s = spec.forecast.step_s
        start_up = max(int(np.ceil(served.startup_s / step_s)) for served in spec.models)
        hour = max(round(HOUR_S / step_s), 1)
        ahead = (min(max(hour // 3, 0), hour - 1), hour) if hourly else (0, start_up + 2)
        usd = np.mean([spec.usd_per_instance_hour(0, j) for j in range(len(spec.regions))])
        settings = Settings(
            every=hour if hourly else 1,
            ahead=ahead,
            level=spec.forecast.level,
            local_share=spec.local_share if len(spec.regions) > 1 else 1.0,
            run_usd=float(usd),
            start_usd=float(usd) * spec.models[0].startup_s / HOUR_S,
            least=spec.least,
            most=self._limits(),
        )
        found = rolling_plan(
            factor * question.series_tps, step_s, question.services, question.model,
            question.first, settings,
            extra_tps=NIW_BUFFER * question.deferred_tps if hourly else None,
        )  # fmt: skip
        self._plans[factor, hourly] = found
        return found

    def _limits(self) -> NDArray[np.int64] | None:
        """Instances that each region can hold; all models' instances count alike by the largest."""
        spec = self.question.spec
        if all(region.most_gpus is None for region in spec.regions):
            return None
        gpus = max(served.gpus for served in spec.models)
        most = spec.most * len(spec.models)
        return np.array(
            [most if r.most_gpus is None else r.most_gpus // gpus for r in spec.regions], np.int64
        )

    def _rerouted(self, index: int, plan: RollingPlan) -> Trace:
        """Return a cell's requests after routing between regions, as ``sent`` says, drawn alike for
        every region's view of it."""
        question = self.question
        cell = question.cells[index]
        regions = len(question.spec.regions)
        if regions == 1:
            return cell.trace
        parts = []
        for source in (c for c in question.cells if c.model == cell.model):
            trace = source.trace
            assert trace.class_id is not None
            share = plan.sent[:, cell.model, source.region]
            at = np.searchsorted(plan.start_s, trace.arrival_s, side="right") - 1
            drawn = np.random.default_rng([self.seed, 7, source.model, source.region])
            cumulative = np.cumsum(share, axis=1)[np.clip(at, 0, len(share) - 1)]
            goes = (drawn.random(len(trace))[:, None] >= cumulative[:, :-1]).sum(axis=1)
            waits = ~question.interactive[trace.class_id]
            goes[waits] = source.region
            own = trace.take(np.flatnonzero(goes == cell.region))
            if source.region != cell.region:
                own = replace(own, arrival_s=own.arrival_s + question.spec.regions_latency_s)
            parts.append(own)
        return merge(parts, cell.trace)

    def _run_cell(
        self, name: str, value: float, cell: Cell, trace: Trace, plan: RollingPlan | None,
        progress: Callable[[str], None] | None,
    ) -> CellOutcome:  # fmt: skip
        spec = self.question.spec
        assert trace.class_id is not None
        waits = ~self.question.interactive[trace.class_id]
        groups = [np.arange(len(trace))]
        if name == "siloed" and waits.any():
            groups = [np.flatnonzero(~waits), np.flatnonzero(waits)]
        runs, met, left = [], np.zeros(len(trace), bool), np.zeros(len(trace), bool)
        for rows in groups:
            own = trace.take(rows)
            run = self._simulate(name, value, cell, own, plan, progress)
            runs.append(run)
            met[rows], left[rows] = self._met(own, run), run.left
        where = spec.regions[cell.region].name
        if progress is not None:
            progress(f"{name}: {spec.models[cell.model].model} in {where} done")
        counted = ~left
        work_s = float(trace.prompt_tokens[left].sum()) / self._best_tps(cell.model)
        return CellOutcome(
            cell.model, cell.region, tuple(runs), trace.class_id[counted], met[counted],
            trace.arrival_s[counted], work_s / HOUR_S,
        )  # fmt: skip

    def _best_tps(self, model: int) -> float:
        """Tokens a second of one instance in the fleet size that serves most."""
        service = self.question.services[model]
        return float((service.tokens_per_s / service.instances).max())

    def _simulate(
        self, name: str, value: float, cell: Cell, trace: Trace, plan: RollingPlan | None,
        progress: Callable[[str], None] | None,
    ) -> ElasticResult:  # fmt: skip
        question, spec = self.question, self.question.spec
        served = spec.models[cell.model]
        tiers = list(spec.tiers.values())
        assert trace.class_id is not None
        deadlines = np.array([t.deadline_s if t.deadline_s is not None else np.nan for t in tiers])
        bounds = np.array([t.ttft_s if t.ttft_s is not None else np.inf for t in tiers])
        due_s = None if name == "siloed" else trace.arrival_s + deadlines[trace.class_id]
        service = question.services[cell.model]
        before = question.series_tps[cell.model, cell.region, : question.first][-6:]
        place = spec.regions[cell.region]
        most = spec.most
        if place.most_gpus is not None:
            most = min(most, place.most_gpus // served.gpus)
        if most < spec.least:
            raise InfeasibleError(
                f"regions: {place.name} holds {place.most_gpus} GPUs, {served.model} needs "
                f"{spec.least * served.gpus} at least"
            )
        initial = int(np.clip(service.needed(float(before.mean())), spec.least, most))
        limits = Limits(
            served.startup_s, initial, most, spec.least, spec.period_s,
            warm=min(spec.spot.instances, most) if spec.spot else 0,
            warm_startup_s=spec.spot.startup_s if spec.spot else 0.0,
        )  # fmt: skip
        controller, release = self._controller(name, value, cell, trace, plan, initial)
        return simulate_elastic(
            question.fleets[cell.model], trace, controller, limits,
            due_s=due_s, release=release, ttft_s=bounds[trace.class_id], seed=self.seed,
            progress=None if progress is None else lambda share: progress(f"{name}: {share:.0%}"),
        )  # fmt: skip

    def _controller(
        self, name: str, value: float, cell: Cell, trace: Trace, plan: RollingPlan | None,
        initial: int,
    ) -> tuple[Controller, ReleaseRule]:  # fmt: skip
        question, spec = self.question, self.question.spec
        service = question.services[cell.model]
        assert trace.class_id is not None
        waits = ~question.interactive[trace.class_id]
        tokens = float(trace.prompt_tokens[waits].mean()) if waits.any() else 1.0
        signal = BySignal()
        valleys = IntoValleys(service.each(initial), tokens)
        if plan is not None:
            own = plan.cell(cell.model, cell.region)
        match name:
            case "threshold" | "siloed":
                return Threshold(value, value / 2), signal
            case "hpa":
                return PodAutoscaler("use", value), _below(value)
            case "keda":
                seats = question.fleets[cell.model].pools[0].max_num_seqs
                return PodAutoscaler("outstanding", value), _below(value / seats)
            case "lt-i":
                return Immediate(own), signal
            case "lt-u":
                return ByUtilisation(own), signal
            case "lt-ua":
                return ByUtilisation(own, burst=5.0), signal
            case "clairvoyant":
                return Immediate(self._known_ahead(cell, value)), valleys
        assert plan is not None
        band = InstancePlan(own.start_s, own.target, plan.wanted_tps[:, cell.model, cell.region])
        local = self._served_here(plan, cell)
        urgent = [t for t in spec.tiers.values() if t.deadline_s is None]
        allowed = sum(t.share * (1.0 - t.attainment) for t in urgent) / sum(t.share for t in urgent)
        return (
            Anticipating(
                replace(band, forecast_tps=local), service, late_allowed=max(allowed / 2, 1e-3),
                batch_tokens=tokens, floor=value,
            ),
            valleys,
        )  # fmt: skip

    def _served_here(self, plan: RollingPlan, cell: Cell) -> Floats:
        """Tokens a second planned to be served in a region, those from other regions included."""
        wanted, sent = plan.wanted_tps[:, cell.model], plan.sent[:, cell.model]
        return np.asarray((wanted * sent[:, :, cell.region]).sum(axis=1))

    def _known_ahead(self, cell: Cell, factor: float) -> InstancePlan:
        """Instances for the demand that will come, deferrable work spread as the bound spreads it."""
        question, spec = self.question, self.question.spec
        step_s = spec.forecast.step_s
        load = question.series_tps[cell.model, cell.region, question.first :]
        service = question.services[cell.model]
        _, moved = self._bound_of(load, cell.model, [cell.region], spec.least)
        need = np.array(
            [service.needed(factor * (a + b)) for a, b in zip(load, moved, strict=True)]
        )
        start_up = int(np.ceil(spec.models[cell.model].startup_s / step_s))
        held = keep_through_gaps(np.maximum(need, spec.least), start_up)
        early = np.stack([np.roll(held, -k) for k in range(start_up + 1)])
        early[:, len(held) - start_up :] = held[-start_up - 1 :].max() if start_up else held[-1]
        return InstancePlan(
            step_s * np.arange(len(held), dtype=np.float64), early.max(axis=0), load
        )

    @cached_property
    def bound_gpu_hours(self) -> float:
        """GPU-hours that no policy of this capacity can go below: demand known, instances divisible,
        regions pooled."""
        question, spec = self.question, self.question.spec
        total = 0.0
        for i, served in enumerate(spec.models):
            load = question.series_tps[i, :, question.first :].sum(axis=0)
            regions = range(len(spec.regions))
            least = float(spec.least * len(spec.regions))
            steps, _ = self._bound_of(load, i, regions, least)
            total += steps * spec.forecast.step_s / HOUR_S * served.gpus
        return total

    def _bound_of(
        self, load: Floats, model: int, regions: Iterable[int], least: float
    ) -> tuple[float, Floats]:
        question, spec = self.question, self.question.spec
        step_s = spec.forecast.step_s
        best = self._best_tps(model)
        arrived, due = np.zeros(len(load)), np.zeros(len(load))
        for cell in question.cells:
            if cell.model != model or cell.region not in regions:
                continue
            trace = cell.trace
            assert trace.class_id is not None
            for number, tier in enumerate(spec.tiers.values()):
                if tier.deadline_s is None:
                    continue
                own = trace.class_id == number
                weights = trace.prompt_tokens[own] / step_s
                for store, at_s in ((arrived, 0.0), (due, tier.deadline_s)):
                    step = ((trace.arrival_s[own] + at_s) // step_s).astype(np.int64)
                    inside = step < len(load)
                    store += np.bincount(step[inside], weights[inside], minlength=len(load))
        start_steps = spec.models[model].startup_s / step_s
        found = fluid_bound(
            load, best, start_steps=start_steps, arrived=arrived, due=due, least=least
        )
        return found.instance_steps, found.deferred

    def _met(self, trace: Trace, run: ElasticResult) -> NDArray[np.bool_]:
        spec, result = self.question.spec, run.result
        assert trace.class_id is not None
        met = np.zeros(len(trace), bool)
        for number, tier in enumerate(spec.tiers.values()):
            own = trace.class_id == number
            met[own] = tier.slo.met(result.ttft_s[own], result.tpot_s[own], result.e2e_s[own])
        return met


def _below(target: float) -> BySignal:
    """Return SageServe's rule of release, kept so far below an autoscaler's target that deferrable
    requests do not make it start instances."""
    return BySignal(levels=(min(0.6, 0.8 * target), min(0.5, 0.65 * target)))


def merge(parts: list[Trace], like: Trace) -> Trace:
    """Return requests of several traces in order of arrival."""
    arrival_s = np.concatenate([part.arrival_s for part in parts])
    order = np.argsort(arrival_s, kind="stable")

    def column(name: str) -> NDArray[np.int32]:
        return np.concatenate([getattr(part, name) for part in parts])[order]

    return replace(
        like,
        arrival_s=arrival_s[order],
        prompt_tokens=column("prompt_tokens"),
        output_tokens=column("output_tokens"),
        class_id=column("class_id").astype(np.int16),
        model_id=None,
        region_id=None,
    )


def tuned(
    runner: Runner, name: str, progress: Callable[[str], None] | None = None
) -> tuple[Outcome, list[Outcome]]:
    """Return the cheapest run of a policy, over values of its knob, that meets the objectives (the one
    closest to that if none does), and all runs."""
    runs = [runner.run(name, value, progress) for value in policy(name).tried]
    good = [run for run in runs if run.meets]
    if good:
        return min(good, key=lambda run: run.gpu_hours), runs

    def lacking(run: Outcome) -> float:
        tiers = run.question.spec.tiers
        return sum(max(t.attainment - run.attainment[n], 0.0) for n, t in tiers.items())

    return min(runs, key=lacking), runs
