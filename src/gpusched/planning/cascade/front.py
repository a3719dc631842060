"""Thresholds and GPUs together: the whole front of latency against quality, and the point asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError
from gpusched.planning.cascade.allocation import Allocation
from gpusched.planning.cascade.escalation import (
    Escalation,
    candidate_thresholds,
    checked_scores,
    escalate,
    undominated,
)

Floats = NDArray[np.float64]
Inner = Callable[[Floats], Allocation]
"""The best allocation for given shares of requests at each model; raises where there is none."""


@dataclass(frozen=True, slots=True)
class CascadePoint:
    """One choice of thresholds with its best allocation."""

    models: tuple[int, ...]
    """Models asked, in order; the others get no request."""
    thresholds: tuple[float, ...]
    """Of the models asked but the last."""
    reach: tuple[float, ...]
    """Share of the requests at each of all models."""
    quality: float
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class CascadeFront:
    """Choices none of which beats another, from fast to good."""

    points: tuple[CascadePoint, ...]
    tried: int
    """Threshold vectors looked at."""
    solved: int
    """Allocations solved."""

    def fastest(self, quality: float) -> CascadePoint:
        """Return the fastest point of at least this quality.

        Raises:
            InfeasibleError: none is so good; says how good the best is.
        """
        good = [point for point in self.points if point.quality >= quality - 1e-9]
        if not good:
            best = max(point.quality for point in self.points)
            raise InfeasibleError(
                f"quality floor {quality:g} cannot be met: the best thresholds reach {best:.2f}; "
                "lower the floor or add a larger model"
            )
        return min(good, key=lambda point: (point.allocation.value_s, -point.quality))

    def chebyshev(self, weight: float) -> CascadePoint:
        """Return the point whose larger weighted loss is least: ``weight`` on latency, the rest on
        quality, both scaled to the front's range (Cascadia, first version).
        """
        value = np.array([point.allocation.value_s for point in self.points])
        quality = np.array([point.quality for point in self.points])
        slow = (value - value.min()) / max(np.ptp(value), 1e-12)
        poor = (quality.max() - quality) / max(np.ptp(quality), 1e-12)
        worst = np.maximum(weight * slow, (1 - weight) * poor)
        return self.points[int(np.lexsort((slow + poor, worst))[0])]

    def penalized(self, quality: float, price_s: float) -> CascadePoint:
        """Return the point of least ``latency + price x shortfall of quality``, the shortfall as a
        share of the front's range of quality (Cascadia, second version)."""
        scores = np.array([point.quality for point in self.points])
        short = np.maximum(quality - scores, 0.0) / max(np.ptp(scores), 1e-12)
        value = np.array([point.allocation.value_s for point in self.points])
        return self.points[int((value + price_s * short).argmin())]


def cascade_front(
    scores: ArrayLike,
    inner: Inner,
    *,
    chains: Sequence[Sequence[int]] | None = None,
    per_stage: int = 24,
) -> CascadeFront:
    """Return the front of latency against quality over chains of models and threshold vectors.

    ``chains`` are the models that may be asked one after another, every part of the cascade if not
    given. The objective is piecewise constant in the thresholds, so they are enumerated; vectors
    that send more requests anywhere for no better quality are left out before any allocation is
    solved.

    Raises:
        InfeasibleError: no vector has an allocation; the last reason.
        InputError: the scores are no table of numbers.
    """
    table = checked_scores(scores)
    every = range(table.shape[1])
    if chains is None:
        chains = [chain for size in every for chain in combinations(every, size + 1)]
    models, found = _all_chains(table, chains, per_stage)
    rows = undominated(found)
    points, reason = [], InfeasibleError("cascade: no thresholds to try")
    known: dict[tuple[float, ...], Allocation] = {}
    for row in rows:
        shares = tuple(float(share) for share in found.reach[row])
        if shares not in known:
            try:
                known[shares] = inner(found.reach[row])
            except InfeasibleError as error:
                reason = error
                continue
        chain = models[row]
        thresholds = tuple(float(h) for h in found.thresholds[row][: len(chain) - 1])
        quality = float(found.quality[row])
        points.append(CascadePoint(chain, thresholds, shares, quality, known[shares]))
    if not points:
        raise reason
    return front_from(points, len(found.quality), len(known))


def front_from(points: Sequence[CascadePoint], tried: int, solved: int) -> CascadeFront:
    """Return the points that no other beats, from fast to good."""
    front: list[CascadePoint] = []
    for point in sorted(points, key=lambda point: (point.allocation.value_s, -point.quality)):
        if not front or point.quality > front[-1].quality + 1e-12:
            front.append(point)
    return CascadeFront(tuple(front), tried, solved)


def _all_chains(
    table: Floats, chains: Sequence[Sequence[int]], per_stage: int
) -> tuple[list[tuple[int, ...]], Escalation]:
    """Return the threshold vectors of all chains, with reach over all models."""
    models: list[tuple[int, ...]] = []
    thresholds, reach, quality = [], [], []
    for chain in chains:
        own = table[:, list(chain)]
        found = escalate(own, candidate_thresholds(own, per_stage))
        models += [tuple(chain)] * len(found.quality)
        wide = np.zeros((len(found.quality), table.shape[1]))
        wide[:, list(chain)] = found.reach
        padded = np.full((len(found.quality), table.shape[1] - 1), np.nan)
        padded[:, : len(chain) - 1] = found.thresholds
        thresholds.append(padded)
        reach.append(wide)
        quality.append(found.quality)
    return models, Escalation(
        np.concatenate(thresholds), np.concatenate(reach), np.concatenate(quality)
    )
