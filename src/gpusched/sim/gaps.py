"""Inter-token latency: gaps between successive tokens in a logarithmic histogram."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import kernel

LOWEST_S = 1e-6
RATIO = 1.01
BINS = 2400
"""Bins of 1 % width from 1 microsecond to about 23,000 seconds."""

EDGES_S = LOWEST_S * RATIO ** np.arange(BINS + 1, dtype=np.float64)
_LOG_RATIO = math.log(RATIO)

GAP_TOTALS = np.dtype(
    [("total_s", "f8"), ("max_s", "f8"), ("bin", "i8"), ("lo", "f8"), ("hi", "f8")]
)
"""Sum and maximum of all gaps, and the bin that the last gap fell in with its edges."""


@dataclass(frozen=True, slots=True)
class GapHistogram:
    """Gaps between successive tokens. Mean and maximum are exact, percentiles within 1 %."""

    counts: NDArray[np.int64]
    """Shape (BINS,)."""
    total_s: float
    max_s: float

    def cumulative(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return upper edges of the filled bins, seconds, and the share of gaps below each."""
        filled = np.flatnonzero(self.counts)
        shares = np.cumsum(self.counts[filled]) / max(int(self.counts.sum()), 1)
        return np.minimum(EDGES_S[filled + 1], self.max_s), shares

    def spread(self) -> dict[str, float | None]:
        """Mean, percentiles and maximum."""
        count = int(self.counts.sum())
        if count == 0:
            return dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"))
        cumulative = np.cumsum(self.counts)
        answer: dict[str, Any] = {"mean": self.total_s / count}
        for percent in (50, 90, 95, 99):
            index = int(np.searchsorted(cumulative, percent / 100 * count))
            middle = math.sqrt(EDGES_S[index] * EDGES_S[index + 1])
            answer[f"p{percent}"] = min(middle, self.max_s)
        answer["max"] = self.max_s
        return answer


@kernel
def add_gaps(counts, totals, gap_s, count):
    """Count ``count`` tokens that each came ``gap_s`` after the one before."""
    state = totals[0]
    if not state.lo <= gap_s < state.hi:
        index = 0
        if gap_s > LOWEST_S:
            index = min(int(math.log(gap_s / LOWEST_S) / _LOG_RATIO), BINS - 1)
        state.bin = index
        state.lo = EDGES_S[index] if index > 0 else 0.0
        state.hi = EDGES_S[index + 1] if index < BINS - 1 else math.inf
        if gap_s < state.lo:
            state.lo = gap_s
        if gap_s >= state.hi:
            state.hi = gap_s
    counts[state.bin] += count
    state.total_s += gap_s * count
    if gap_s > state.max_s:
        state.max_s = gap_s


@kernel
def add_gap_run(counts, totals, first_s, slope_s, steps, count):
    """Count ``steps`` successive gaps ``first_s + i * slope_s`` of ``count`` tokens each."""
    done = 0
    while done < steps:
        gap_s = first_s + slope_s * done
        add_gaps(counts, totals, gap_s, count)
        done += 1
        hi = totals[0].hi
        if done == steps:
            return
        within = steps - done
        if slope_s > 0.0 and hi < math.inf:
            within = min(within, max(int((hi - gap_s) / slope_s) - 1, 0))
        if within > 0:
            counts[totals[0].bin] += within * count
            sum_s = within * (first_s + slope_s * done) + slope_s * 0.5 * within * (within - 1)
            totals[0].total_s += sum_s * count
            last_s = first_s + slope_s * (done + within - 1)
            if last_s > totals[0].max_s:
                totals[0].max_s = last_s
            done += within
