"""What a few replications prove: intervals of means, paired differences, several at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of the differences between two policies on the same requests."""

    mean: float
    half_width: float
    """Of its own confidence interval; infinite with a single replication."""
    p: float
    """Probability that chance alone gives as much, corrected for what else was compared."""

    @property
    def told_apart(self) -> bool:
        """Whether chance is ruled out."""
        return self.p < 1.0 - CONFIDENCE


def mean_interval(sample: Floats) -> tuple[float, float]:
    """Return the mean of a sample and the half width of its confidence interval (Student's t)."""
    n = len(sample)
    if n < 2:
        return float(sample.mean()), float("inf")
    spread = float(sample.std(ddof=1))
    return float(sample.mean()), float(student.ppf(0.5 + CONFIDENCE / 2, n - 1)) * spread / n**0.5


def p_value(differences: Floats) -> float:
    """Return the two-sided p-value of a mean of zero (paired Student's t).

    One where nothing can be said: a single difference, or one that is not a number.
    """
    n = len(differences)
    if n < 2 or not np.isfinite(differences).all():
        return 1.0
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2.0 * student.sf(abs(mean) / spread * n**0.5, n - 1))


def holm(p_values: Sequence[float]) -> Floats:
    """Return p-values corrected for their number: the chance of any false alarm among them stays
    that of a single one (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    factors = np.arange(len(p), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return corrected


def pairwise(samples: Sequence[Floats]) -> dict[tuple[int, int], Difference]:
    """Return the differences between all ordered pairs of samples, each paired by replication.

    p-values are Holm-corrected over all pairs.
    """
    pairs = list(combinations(range(len(samples)), 2))
    p_values = holm([p_value(samples[i] - samples[j]) for i, j in pairs])
    found = {}
    for (i, j), p in zip(pairs, p_values, strict=True):
        mean, half_width = mean_interval(samples[i] - samples[j])
        found[i, j] = Difference(mean, half_width, float(p))
        found[j, i] = Difference(-mean, half_width, float(p))
    return found


def last_at_least(x: Floats, y: Floats, level: float) -> float:
    """Return the largest ``x`` up to which ``y``, linear between the points, stays at ``level``.

    ``x`` ascends. Infinite if ``y`` never falls below, minus infinity if it starts there.
    """
    below = np.flatnonzero(y < level)
    if not below.size:
        return float("inf")
    k = int(below[0])
    if k == 0:
        return float("-inf")
    return float(x[k - 1] + (y[k - 1] - level) / (y[k - 1] - y[k]) * (x[k] - x[k - 1]))
