"""Survival curve of output lengths, learned from answers that ended and those still running.

Kaplan and Meier (JASA 53, 1958): an answer that runs has at least the length it has reached; to
leave it out, or to count it as ended, would bias the curve towards short answers.
"""

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.policies.lengths.histogram import BINS, bin_of, upper_ends

Floats = NDArray[np.float64]


def kaplan_meier(ended: NDArray[np.int64], running: NDArray[np.int64]) -> Floats:
    """Return the probability that an answer is longer than each bin, shape (BINS,).

    ``ended`` and ``running`` count answers by bin: final lengths, and lengths reached. Beyond the
    last length seen the curve stays where it is.
    """
    at_risk = (ended + running)[::-1].cumsum()[::-1]
    share = np.divide(ended, at_risk, out=np.zeros(len(ended)), where=at_risk > 0)
    return np.cumprod(1.0 - share)


def survival_weights(lengths: NDArray[np.int64], ended: NDArray[np.bool_]) -> Floats:
    """Return the curve's fall at each answer: weights, of sum 1, with which a sample stands for the
    final lengths of all. An answer that runs passes its share on to the longer ones; the longest is
    taken to have ended (Efron, 1967).
    """
    n = len(lengths)
    order = np.lexsort((~ended, lengths))
    hazard = ended[order] / (n - np.arange(n))
    hazard[-1:] = 1.0
    before = np.concatenate(([1.0], np.cumprod(1.0 - hazard)[:-1]))[:n]
    weights = np.empty(n)
    weights[order] = before * hazard
    return weights


class SurvivalCurve:
    """Lengths observed so far."""

    def __init__(self) -> None:
        self.ended = np.zeros(BINS, np.int64)
        self.running = np.zeros(BINS, np.int64)
        self._ends = upper_ends()

    def observe(self, output_tokens: int) -> None:
        """Count an answer that ended with this length."""
        if output_tokens < 1:
            raise InputError(f"an answer has at least one token, got {output_tokens}")
        self.ended[bin_of(output_tokens)] += 1

    def censor(self, produced_tokens: NDArray[np.int64]) -> None:
        """State the lengths that running answers have reached, in place of what was stated before."""
        self.running[:] = 0
        for tokens in produced_tokens:
            if tokens > 0:
                self.running[bin_of(int(tokens))] += 1

    @property
    def curve(self) -> Floats:
        """Probability that an answer is longer than each bin's end."""
        return kaplan_meier(self.ended, self.running)

    def probability(self, tokens: int) -> float:
        """Return the probability that an answer is longer than ``tokens``."""
        return float(self.curve[bin_of(tokens)]) if tokens > 0 else 1.0

    def quantile(self, share: float, produced_tokens: int = 0) -> int | None:
        """Return a length that ``share`` of the answers do not exceed that reach
        ``produced_tokens``; None where nothing that long has ended."""
        if not self.ended.any():
            return None
        curve = self.curve
        first = bin_of(produced_tokens) if produced_tokens > 0 else -1
        reached = curve[first] if first >= 0 else 1.0
        if reached <= 0.0:
            return None
        beyond = np.flatnonzero(curve[first + 1 :] <= (1.0 - share) * reached + 1e-12)
        if beyond.size:
            return int(self._ends[first + 1 + beyond[0]])
        seen = np.flatnonzero(self.ended + self.running)
        return int(self._ends[max(seen[-1], first + 1 if first + 1 < BINS else first)])

    def expected_left(self, produced_tokens: int) -> float | None:
        """Return the mean number of further tokens of an answer that has reached this length, up to
        the longest seen."""
        if not self.ended.any():
            return None
        lengths = np.diff(self._ends, prepend=0)
        curve = np.concatenate(([1.0], self.curve))[:-1]
        last = int(np.flatnonzero(self.ended + self.running)[-1])
        first = bin_of(produced_tokens) + 1 if produced_tokens > 0 else 0
        reached = curve[first] if first < BINS else 0.0
        if reached <= 0.0 or first > last:
            return None
        return float((curve[first : last + 1] * lengths[first : last + 1]).sum() / reached)
