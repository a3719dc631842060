"""Policies side by side on the same requests, with confidence in their differences."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from gpusched.domain.plan import Plan, plan_document, plan_from
from gpusched.errors import InputError
from gpusched.sim.deploy import fleet_for
from gpusched.sim.metrics import metrics
from gpusched.sim.simulate import ClosedLoop, simulate
from gpusched.traces.trace import Trace
from gpusched.traces.workload import load_workload

CONFIDENCE = 0.95
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


@dataclass(frozen=True, slots=True)
class Variant:
    """A combination of policies."""

    batching: str
    routing: str

    def __str__(self) -> str:
        return f"{self.batching} + {self.routing}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of one variant over the replications, and its paired difference to the baseline."""

    mean: float
    half_width: float
    """Of the confidence interval of the mean; infinite with a single replication."""
    difference: float
    difference_half_width: float

    @property
    def noise(self) -> bool:
        """Whether the difference to the baseline could be chance."""
        return not abs(self.difference) > self.difference_half_width


@dataclass(frozen=True, slots=True)
class Row:
    """One variant at one rate."""

    variant: Variant
    rate_scale: float
    estimates: dict[str, Estimate]
    replications: tuple[dict[str, Any], ...]
    """Metrics of each replication."""

    def verdict(self, figure: str = "slo_attainment") -> str:
        """Say whether the variant is better or worse than the baseline, or whether nobody knows."""
        estimate = self.estimates[figure]
        if estimate.difference == 0 and estimate.difference_half_width == 0:
            return "same"
        if estimate.noise:
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
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Return each variant at each rate, the first variant being the baseline.

    Every variant serves the same requests (common random numbers), so that differences are paired.
    Generated workloads are drawn anew for each replication; a trace file is cut into as many
    windows of equal length, each served from an empty fleet.

    Raises:
        InputError: a policy does not fit a pool, or the trace is too short for the replications.
    """
    plans = [with_policies(plan, variant) for variant in variants]
    for candidate in plans:
        fleet_for(candidate)
    tasks = [
        (candidate, scale, index, replications, seed)
        for scale, index, candidate in product(rate_scales, range(replications), plans)
    ]
    results = []
    if jobs > 1 and len(tasks) > 1:
        with ProcessPoolExecutor(jobs) as pool:
            for done, figures in enumerate(pool.map(_run, tasks), 1):
                results.append(figures)
                if progress is not None:
                    progress(f"{done} of {len(tasks)} simulations")
    else:
        for done, task in enumerate(tasks, 1):
            results.append(_run(task))
            if progress is not None:
                progress(f"{done} of {len(tasks)} simulations")
    by_rate = np.array(results, dtype=object).reshape(len(rate_scales), replications, len(plans))
    rows = []
    for scale, runs in zip(rate_scales, by_rate, strict=True):
        for index, variant in enumerate(variants):
            rows.append(_row(variant, scale, list(runs[:, index]), list(runs[:, 0])))
    return rows


def with_policies(plan: Plan, variant: Variant) -> Plan:
    """Return a plan under other policies.

    Raises:
        InputError: no such policy.
    """
    values = plan_document(plan)
    values["routing"] = variant.routing
    for pool in values["pools"]:
        if pool.get("role", "mixed") == "mixed" or len(values["pools"]) == 1:
            pool["engine"]["batching"] = variant.batching
    return plan_from(values, origin=f"policies {variant}")


def replication(plan: Plan, rate_scale: float, index: int, count: int, seed: int) -> Trace:
    """Return the requests of one replication."""
    if plan.workload.profile is not None:
        trace = load_workload(plan.workload, plan.slo, seed=seed + index)
        return trace.scale_rate(rate_scale)
    trace = load_workload(plan.workload, plan.slo, seed=seed)
    if count == 1:
        return trace.scale_rate(rate_scale)
    width_s = trace.duration_s / count
    window = trace.slice_time(index * width_s, (index + 1) * width_s if index < count - 1 else None)
    if not len(window):
        raise InputError(
            f"{trace.name}: window {index + 1} of {count} holds no request; ask for fewer replications"
        )
    return window.scale_rate(rate_scale)


def _run(task: tuple[Plan, float, int, int, int]) -> dict[str, Any]:
    plan, rate_scale, index, count, seed = task
    users = plan.workload.users
    result = simulate(
        fleet_for(plan),
        replication(plan, rate_scale, index, count, seed),
        closed_loop=ClosedLoop(users, plan.workload.think_s) if users is not None else None,
        seed=seed + index,
    )
    return metrics(plan, result)


def _row(
    variant: Variant, scale: float, own: list[dict[str, Any]], base: list[dict[str, Any]]
) -> Row:
    estimates = {}
    for name in FIGURES:
        ours, theirs = (np.array([_figure(run, name) for run in runs]) for runs in (own, base))
        mean, half = mean_interval(ours)
        estimates[name] = Estimate(mean, half, *mean_interval(ours - theirs))
    return Row(variant, scale, estimates, tuple(own))


def _figure(values: dict[str, Any], name: str) -> float:
    for part in name.split("."):
        values = values[part]
    return float("nan") if values is None else float(values)  # type: ignore[arg-type]


def mean_interval(sample: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean of a sample and the half width of its confidence interval (Student's t)."""
    n = len(sample)
    if n < 2:
        return float(sample.mean()), float("inf")
    spread = float(sample.std(ddof=1))
    return float(sample.mean()), float(student.ppf(0.5 + CONFIDENCE / 2, n - 1)) * spread / n**0.5
