"""What a comparison says: the best policy at each load, the largest load each one carries, and the
load at which policies part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Any, Literal

import numpy as np

from gpusched.domain.plan import Plan
from gpusched.domain.slo import SloClasses
from gpusched.sim.compare import Row, Variant, compare
from gpusched.statistics import Difference, Floats, last_at_least, mean_interval, pairwise

MATERIAL = 0.1
"""Share of the misses that the SLO allows below which a difference in attainment does not matter."""
PROBE_FACTOR = 1.2
PROBES = 6
"""Loads tried in search of one at which policies part: up to three times the given one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which variants serve a load best, by SLO attainment."""

    best: Row
    """Of the highest mean attainment; the lower mean E2E decides between equals."""
    equals: tuple[Row, ...]
    """Not told apart from the best, or by too little to matter."""
    behind: tuple[tuple[Row, Difference], ...]
    """The others, by how much they fall behind the best, the next best first."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """All variants, the best first."""
        return (self.best, *self.equals, *(row for row, _ in self.behind))

    @property
    def apart(self) -> bool:
        """Whether any variant is worse than the best beyond chance and by enough to matter."""
        return bool(self.behind)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest load up to which a variant keeps every class at its attainment."""

    variant: Variant
    rate_scale: float
    """Interpolated between the rates run; infinite if all keep it, minus infinity if none does."""
    half_width: float
    """Infinite where some replication leaves the range of the rates run."""
    rate_rps: float
    difference: Difference | None
    """To the first variant, in multiples of the rate; None where a replication leaves the range."""

    @property
    def outside(self) -> Literal["above", "below"] | None:
        """On which side of the rates run it lies, if outside."""
        if isfinite(self.rate_scale):
            return None
        return "above" if self.rate_scale > 0 else "below"


def verdicts(rows: Sequence[Row], slo: SloClasses) -> list[Verdict]:
    """Return what is best at each rate."""
    return [best_of(list(own), slo) for _, own in groupby(rows, key=lambda row: row.rate_scale)]


def best_of(rows: Sequence[Row], slo: SloClasses) -> Verdict:
    """Return which of the variants at one rate serve it best."""
    differences = pairwise([row.sample("slo_attainment") for row in rows])
    means = [row.estimates["slo_attainment"].mean for row in rows]
    e2e = [np.nan_to_num(row.estimates["e2e_s.mean"].mean, nan=np.inf) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-means[i], e2e[i], i))
    best = order[0]
    material = material_difference(slo)
    equals, behind = [], []
    for i in order[1:]:
        difference = differences[i, best]
        if difference.told_apart and -difference.mean >= material:
            behind.append((rows[i], difference))
        else:
            equals.append(rows[i])
    return Verdict(rows[best], tuple(equals), tuple(behind))


def material_difference(slo: SloClasses) -> float:
    """Return the smallest difference in attainment that matters."""
    return MATERIAL * (1.0 - max(bounds.attainment for bounds in slo.classes.values()))


def capacities(rows: Sequence[Row], slo: SloClasses) -> list[Capacity]:
    """Return the largest load that each variant carries, in their order.

    Attainment is taken to be linear between the rates run.
    """
    variants = list(dict.fromkeys(row.variant for row in rows))
    scales = np.unique([row.rate_scale for row in rows])
    by_place = {(row.variant, row.rate_scale): row for row in rows}
    means, samples, rates_rps = [], [], []
    for variant in variants:
        own = [by_place[variant, scale] for scale in scales]
        margins = np.array([[margins_of(run, slo) for run in row.replications] for row in own])
        means.append(_carried(scales, margins.mean(axis=1)))
        samples.append(np.array([_carried(scales, run) for run in np.moveaxis(margins, 1, 0)]))
        rates_rps.append([row.rate_rps for row in own])
    inside = [bool(np.isfinite(sample).all()) for sample in samples]
    differences = pairwise([s for s, whole in zip(samples, inside, strict=True) if whole])
    found = []
    for i, variant in enumerate(variants):
        place = sum(inside[:i])
        paired = i > 0 and inside[0] and inside[i]
        found.append(
            Capacity(
                variant,
                means[i],
                mean_interval(samples[i])[1] if inside[i] else float("inf"),
                _at(scales, rates_rps[i], means[i]),
                differences[place, 0] if paired else None,
            )
        )
    return found


def margins_of(figures: dict[str, Any], slo: SloClasses) -> list[float]:
    """Return by how much each class's attainment exceeds its target, or falls below."""
    shares = figures["slo_attainment_by_class"]
    return [shares[name] - bounds.attainment for name, bounds in slo.classes.items()]


def _carried(scales: Floats, margins: Floats) -> float:
    """Return the largest rate up to which every class, a column of ``margins``, meets its target."""
    return min(last_at_least(scales, own, 0.0) for own in margins.T)


def _at(scales: Floats, rates_rps: Sequence[float], scale: float) -> float:
    return float(np.interp(scale, scales, rates_rps)) if isfinite(scale) else scale


def parting(
    plan: Plan,
    rows: Sequence[Row],
    *,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Verdict | None:
    """Return the verdict at the nearest load tried at which variants part; None if none of them.

    ``rows`` are the variants at one rate. Loads grow while the best of them meets the SLO and shrink
    otherwise. ``options`` are those of ``compare``.
    """
    start = rows[0].rate_scale
    worst = [
        np.mean([margins_of(run, plan.slo) for run in row.replications], axis=0).min()
        for row in rows
    ]
    step = PROBE_FACTOR if max(worst) >= 0.0 else 1.0 / PROBE_FACTOR
    for scale in (start * step**k for k in range(1, PROBES + 1)):
        scale = float(f"{scale:.3g}")
        if progress is not None:
            progress(f"no policy is told apart at ×{start:g}; trying ×{scale:g}")
        variants = [row.variant for row in rows]
        found = best_of(compare(plan, variants, rate_scales=(scale,), **options), plan.slo)
        if found.apart:
            return found
    return None


def cautions(rows: Sequence[Row]) -> Iterator[tuple[str, list[float]]]:
    """Yield each warning of the simulations once, with the rates at which it was given.

    Warnings that differ in their figures alone count as one, shown as first given.
    """
    first: dict[str, str] = {}
    rates: dict[str, list[float]] = {}
    for row in rows:
        for run in row.replications:
            for text in run["warnings"]:
                key = "".join(c for c in text if not c.isdigit() and c != ".")
                first.setdefault(key, text)
                if row.rate_scale not in rates.setdefault(key, []):
                    rates[key].append(row.rate_scale)
    for key, text in first.items():
        yield text, rates[key]
