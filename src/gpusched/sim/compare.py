"""Policies side by side on the same requests, with confidence in their differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.plan import Plan, plan_document, plan_from
from gpusched.domain.slo import SloClasses
from gpusched.domain.workload import Workload
from gpusched.errors import InputError
from gpusched.jobs import run_all
from gpusched.policies.batching.discipline import discipline
from gpusched.sim.deploy import fleet_for
from gpusched.sim.fleet import Fleet
from gpusched.sim.metrics import metrics
from gpusched.sim.result import SimulationResult
from gpusched.sim.simulate import ClosedLoop, simulate
from gpusched.statistics import CONFIDENCE, Floats, mean_interval, pairwise
from gpusched.traces.trace import Trace
from gpusched.traces.workload import load_workload

FIGURES = {
    "slo_attainment": "attainment",
    "goodput_rps": "goodput, requests/s",
    "ttft_s.mean": "TTFT mean, s",
    "ttft_s.p99": "TTFT p99, s",
    "tpot_s.mean": "TPOT mean, s",
    "e2e_s.mean": "E2E mean, s",
}
"""Compared figures by their place among the metrics; more is better for the first two."""
MORE_IS_BETTER = ("slo_attainment", "goodput_rps")

LATENCIES = ("ttft", "tpot", "e2e")
SHARES = np.concatenate((np.linspace(0.005, 0.98, 150), 1.0 - np.geomspace(0.02, 1e-4, 51)[1:]))
"""Shares of requests that latency curves are kept for: even in the body, dense in the tail."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A combination of policies."""

    batching: str
    routing: str
    admission: str = "none"

    def __str__(self) -> str:
        parts = [self.batching, self.routing]
        return " + ".join(parts if self.admission == "none" else [*parts, self.admission])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of one variant over the replications, and its paired difference to the baseline."""

    mean: float
    half_width: float
    """Of the confidence interval of the mean; infinite with a single replication."""
    difference: float
    difference_half_width: float
    p: float
    """Of the difference, corrected for all pairs of variants at this rate; 1 for the baseline."""


@dataclass(frozen=True, slots=True)
class Curves:
    """Distributions and series of a variant, small enough to keep for all."""

    latencies_s: dict[str, Floats]
    """``ttft``, ``tpot`` and ``e2e`` within which each of ``SHARES`` of the arrived requests stay,
    averaged over the replications; infinite where so many are rejected."""
    series_s: Floats
    """Edges of the time series, shape (bins + 1,)."""
    kv_use: Floats
    """Share of all KV blocks in use in the first replication, shape (bins,)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One variant at one rate."""

    variant: Variant
    rate_scale: float
    rate_rps: float
    """Requests that arrive a second."""
    estimates: dict[str, Estimate]
    replications: tuple[dict[str, Any], ...]
    """Metrics of each replication."""
    curves: Curves

    def sample(self, figure: str) -> Floats:
        """Return a figure in each replication; nan where it has none."""
        return np.array([_figure(values, figure) for values in self.replications])

    def verdict(self, figure: str = "slo_attainment") -> str:
        """Say whether the variant is better or worse than the baseline, or whether nobody knows."""
        estimate = self.estimates[figure]
        if estimate.difference == 0 == estimate.difference_half_width:
            return "same"
        if not estimate.p < 1.0 - CONFIDENCE:
            return "noise"
        return "better" if (estimate.difference > 0) == (figure in MORE_IS_BETTER) else "worse"


def compare(
    plan: Plan,
    variants: Sequence[Variant],
    *,
    rate_scales: Sequence[float] = (1.0,),
    replications: int = 5,
    seed: int = 0,
    jobs: int = 1,
    ray_address: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Return each variant at each rate, the first variant being the baseline.

    Every variant serves the same requests (common random numbers), so that differences are paired.
    Generated workloads are drawn anew for each replication; a trace file is cut into as many
    windows of equal length, each served from an empty fleet. Simulations run in ``jobs`` processes,
    or on the Ray cluster at ``ray_address``; the figures do not depend on which.

    Raises:
        InputError: a policy does not fit a pool, the trace is too short for the replications, or
            the rate of a closed loop is to be scaled.
    """
    if plan.workload.users is not None and any(scale != 1.0 for scale in rate_scales):
        raise InputError(
            f"--rate-scale: the workload is a closed loop of {plan.workload.users} users, whose "
            "rate follows from the answers; change workload.users instead"
        )
    plans = [with_policies(plan, variant) for variant in variants]
    for candidate in plans:
        fleet_for(candidate)
    tasks = [
        (candidate, scale, index, replications, seed)
        for scale, index, candidate in product(rate_scales, range(replications), plans)
    ]
    runs = run_all(
        _run,
        tasks,
        jobs=jobs,
        ray_address=ray_address,
        progress=(lambda done: progress(f"{done} of {len(tasks)} simulations"))
        if progress is not None
        else None,
    )
    rows: list[Row] = []
    size = replications * len(plans)
    for i, scale in enumerate(rate_scales):
        here = runs[i * size : (i + 1) * size]
        rows += _rows(variants, scale, [here[v :: len(plans)] for v in range(len(plans))])
    return rows


def with_policies(plan: Plan, variant: Variant) -> Plan:
    """Return a plan under other policies.

    Raises:
        InputError: no such policy, or no pool that could follow another batching policy.
    """
    values = plan_document(plan)
    values["routing"] = variant.routing
    values["admission"] = variant.admission
    mixed = [pool for pool in values["pools"] if pool["role"] == "mixed"]
    split = [pool for pool in values["pools"] if pool["role"] == "prefill"]
    at_prefill = {plan.pools[0].engine.batching, "vllm"}
    if not mixed and variant.batching not in at_prefill and not discipline(variant.batching).window:
        raise InputError(
            f"batching policy {variant.batching}: the plan separates prefill from decode, where "
            "engines batch first come first served or on-time; compare routing policies, or plan "
            "with search.roles: [mixed]"
        )
    for pool in mixed or split:
        pool["engine"]["batching"] = variant.batching
    return plan_from(values, origin=f"policies {variant}")


def with_prediction_errors(policies: Sequence[str], errors: Sequence[float]) -> list[str]:
    """Return batching policies, each that predicts lengths followed by itself under every error.

    An error ``E`` is a length predictor uniform within ``E`` of the true length (``noisy:E``), 0 the
    true length. A policy whose predictor is set stays alone.

    Raises:
        InputError: no such policy, or an error outside 0 to 0.99.
    """
    found = []
    for policy in policies:
        found.append(policy)
        if discipline(policy).predictor is not None and "+predictor=" not in policy:
            found += [
                f"{policy}+predictor={f'noisy:{error:g}' if error else 'oracle'}"
                for error in errors
            ]
    return found


def replication(plan: Plan, rate_scale: float, index: int, count: int, seed: int) -> Trace:
    """Return the requests of one replication.

    Raises:
        InputError: the trace cannot be read or is too short for so many replications.
    """
    described = plan.workload.model_dump_json(), plan.slo.model_dump_json()
    if plan.workload.profile is not None:
        return _requests(*described, seed + index).scale_rate(rate_scale)
    trace = _requests(*described, seed)
    if count == 1:
        return trace.scale_rate(rate_scale)
    width_s = trace.duration_s / count
    window = trace.slice_time(index * width_s, (index + 1) * width_s if index < count - 1 else None)
    if not len(window):
        raise InputError(
            f"{trace.name}: window {index + 1} of {count} holds no request; ask for fewer replications"
        )
    return window.scale_rate(rate_scale)


@lru_cache(maxsize=1)
def _requests(workload: str, slo: str, seed: int) -> Trace:
    """The same requests are wanted again and again, by one variant after the other."""
    return load_workload(
        Workload.model_validate_json(workload), SloClasses.model_validate_json(slo), seed=seed
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What one simulation sends back."""

    figures: dict[str, Any]
    rate_rps: float
    latencies_s: dict[str, Floats]
    series_s: Floats
    kv_use: Floats


def _run(task: tuple[Plan, float, int, int, int]) -> _Run:
    plan, rate_scale, index, count, seed = task
    users = plan.workload.users
    fleet = fleet_for(plan)
    trace = replication(plan, rate_scale, index, count, seed)
    result = simulate(
        fleet,
        trace,
        closed_loop=ClosedLoop(users, plan.workload.think_s) if users is not None else None,
        seed=seed + index,
    )
    figures = metrics(plan, result)
    figures["warnings"] += trace.notes
    first = index == 0
    return _Run(
        figures,
        trace.rate_rps,
        latencies_within(result, result.after(plan.workload.warmup_s)),
        result.series_s if first else np.zeros(1),
        kv_use(fleet, result) if first else np.zeros(0),
    )


def latencies_within(result: SimulationResult, counted: NDArray[np.bool_]) -> dict[str, Floats]:
    """Return the latencies within which ``SHARES`` of the counted requests stay; a rejected request
    takes for ever."""
    found = {}
    for name in LATENCIES:
        rows = (
            counted & ((result.output_tokens > 1) | result.rejected) if name == "tpot" else counted
        )
        values = np.sort(np.where(result.rejected, np.inf, getattr(result, f"{name}_s"))[rows])
        ranks = np.ceil(SHARES * len(values)).astype(np.int64) - 1
        found[name] = values[ranks] if len(values) else np.full(len(SHARES), np.nan)
    return found


def kv_use(fleet: Fleet, result: SimulationResult) -> Floats:
    """Return the share of all pools' KV blocks in use, shape (bins,)."""
    blocks = np.array([pool.replicas * pool.kv_blocks for pool in fleet.pools], np.float64)
    return np.asarray(blocks @ result.kv_use / blocks.sum())


def _rows(variants: Sequence[Variant], scale: float, runs: Sequence[Sequence[_Run]]) -> list[Row]:
    """Join the replications of each variant, ``runs[variant][replication]``."""
    samples = {
        name: [np.array([_figure(run.figures, name) for run in own]) for own in runs]
        for name in FIGURES
    }
    against = {name: pairwise(sample) for name, sample in samples.items()}
    rows = []
    for i, (variant, own) in enumerate(zip(variants, runs, strict=True)):
        estimates = {}
        for name in FIGURES:
            mean, half_width = mean_interval(samples[name][i])
            if i == 0:
                estimates[name] = Estimate(mean, half_width, 0.0, 0.0, 1.0)
            else:
                d = against[name][i, 0]
                estimates[name] = Estimate(mean, half_width, d.mean, d.half_width, d.p)
        curves = Curves(
            {n: np.mean([run.latencies_s[n] for run in own], axis=0) for n in LATENCIES},
            own[0].series_s,
            own[0].kv_use,
        )
        rate_rps = float(np.mean([run.rate_rps for run in own]))
        figures = tuple(run.figures for run in own)
        rows.append(Row(variant, scale, rate_rps, estimates, figures, curves))
    return rows


def _figure(values: dict[str, Any], name: str) -> float:
    for part in name.split("."):
        values = values[part]
    return float("nan") if values is None else float(values)  # type: ignore[arg-type]
