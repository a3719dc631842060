"""Length predictors: how long each answer will be, as far as one can know when it is asked for.

===================== ================================================================
``oracle``            the true length
``noisy:E``           uniform in (1 - E) to (1 + E) times the true length
``over:A``            uniform between the true length and A times it: never too short
``lognormal:S``       the true length times exp(S z), z standard normal
``mean``              mean of the answers that have ended
``quantile:Q``        their Q quantile, within the request's class
``prompt-quantile:Q`` their Q quantile, among prompts of like length
``survival:Q``        the Q quantile of the survival curve, running answers counted (Kaplan-Meier)
``constant:N``        N tokens
===================== ================================================================

The learning ones see an answer only when it has ended. Over a trace, without a simulation, an answer
is taken to end ``DELAY_S`` plus ``TOKEN_S`` for each of its tokens after it was asked for.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import entry_kernel
from gpusched.errors import InputError, unknown_name
from gpusched.policies.lengths.histogram import BINS, LONGEST, add, bin_of, quantile, upper_ends
from gpusched.policies.lengths.survival import kaplan_meier
from gpusched.traces.trace import Trace

DELAY_S, TOKEN_S = 1.0, 0.02
PRIOR_TOKENS = 256
"""Prediction before any answer has ended."""
ENOUGH = 32
"""Answers that a class or a prompt length must have before its own quantile counts."""
SURVIVAL_EVERY = 256
"""Requests between two estimates of the survival curve over a trace."""

_RANGES: dict[str, tuple[float, float] | None] = {
    "oracle": None,
    "noisy": (0.0, 0.99),
    "over": (1.0, 100.0),
    "lognormal": (0.0, 5.0),
    "mean": None,
    "quantile": (0.01, 0.999),
    "prompt-quantile": (0.01, 0.999),
    "survival": (0.01, 0.999),
    "constant": (1.0, 1e6),
}


@dataclass(frozen=True, slots=True)
class Predictor:
    """A length predictor: its kind and its one parameter, if it has one."""

    kind: str
    value: float = 0.0

    def __str__(self) -> str:
        return self.kind if _RANGES[self.kind] is None else f"{self.kind}:{self.value:g}"

    @property
    def learns(self) -> bool:
        """Whether it knows only answers that have ended."""
        return self.kind in ("mean", "quantile", "prompt-quantile", "survival")


def parse_predictor(text: str) -> Predictor:
    """Return the predictor that a text such as ``quantile:0.9`` names.

    Raises:
        InputError: no such predictor, or its parameter is missing or out of range.
    """
    kind, _, number = text.partition(":")
    if kind not in _RANGES:
        raise InputError(unknown_name("length predictor", kind, _RANGES))
    bounds = _RANGES[kind]
    if bounds is None:
        if number:
            raise InputError(f"length predictor {kind} takes no parameter, got {number!r}")
        return Predictor(kind)
    try:
        value = float(number)
        if not bounds[0] <= value <= bounds[1]:
            raise ValueError
    except ValueError:
        raise InputError(
            f"length predictor {kind}: expected {kind}:NUMBER with a number from {bounds[0]:g} to "
            f"{bounds[1]:g}, got {text!r}"
        ) from None
    return Predictor(kind, value)


def predict(trace: Trace, predictor: Predictor, seed: int = 0) -> NDArray[np.int32]:
    """Return the predicted output tokens of every request of a trace, shape (requests,)."""
    true = trace.output_tokens.astype(np.float64)
    rng = np.random.default_rng((seed, 0x1E46))
    n = len(true)
    if predictor.kind == "oracle":
        return trace.output_tokens.astype(np.int32)
    if predictor.kind == "constant":
        return np.full(n, round(predictor.value), np.int32)
    if predictor.kind == "noisy":
        return whole(true * rng.uniform(1.0 - predictor.value, 1.0 + predictor.value, n))
    if predictor.kind == "over":
        return whole(np.ceil(true * rng.uniform(1.0, predictor.value, n)))
    if predictor.kind == "lognormal":
        return whole(true * np.exp(predictor.value * rng.standard_normal(n)))
    ends = trace.arrival_s + DELAY_S + TOKEN_S * true
    if np.isnan(trace.arrival_s).any():
        ends = np.nan_to_num(ends, nan=np.inf)
    order = np.argsort(ends, kind="stable")
    if predictor.kind == "mean":
        done = np.searchsorted(ends[order], trace.arrival_s, side="right")
        sums = np.concatenate(([0.0], np.cumsum(true[order])))
        return whole(np.where(done > 0, sums[done] / np.maximum(done, 1), PRIOR_TOKENS))
    if predictor.kind == "survival":
        return _survival(trace, order, ends, predictor.value)
    history = LengthHistory(predictor)
    keys = np.zeros(n, np.int64)
    if predictor.kind == "prompt-quantile":
        keys = np.floor(np.log2(trace.prompt_tokens)).astype(np.int64)
    elif trace.class_id is not None:
        keys = trace.class_id.astype(np.int64)
    answer = np.zeros(n, np.int32)
    history.reserve(int(keys.max()) + 1)
    _replay(
        trace.arrival_s, ends[order], order, trace.output_tokens, keys, history.trees,
        history.totals, predictor.value, answer,
    )  # fmt: skip
    return answer


def whole(values: NDArray[np.float64]) -> NDArray[np.int32]:
    """Round to tokens, at least one and at most ``LONGEST``.

    Raises:
        InputError: a prediction is not a finite number.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise InputError(f"the predicted length of request {bad[0]} is {values[bad[0]]}")
    return np.clip(np.rint(values), 1.0, LONGEST).astype(np.int32)


class LengthHistory:
    """A learning predictor for live use: told of answers as they end, asked as requests come.

    Raises:
        InputError: the predictor is not a mean or a quantile of answers that have ended.
    """

    def __init__(self, predictor: Predictor) -> None:
        if predictor.kind not in ("mean", "quantile", "prompt-quantile"):
            raise InputError(
                f"length predictor {predictor} does not learn from ended answers alone; choose "
                "mean, quantile or prompt-quantile"
            )
        self.predictor = predictor
        self.trees = np.zeros((2, BINS + 1), np.int64)
        self.totals = np.zeros(2, np.int64)
        self._sum = 0.0

    def reserve(self, keys: int) -> None:
        """Make room for this many classes or prompt lengths; the last row counts all together."""
        if keys + 1 > len(self.trees):
            grown = np.zeros((keys + 1, BINS + 1), np.int64)
            grown[: len(self.trees) - 1] = self.trees[:-1]
            grown[-1] = self.trees[-1]
            totals = np.zeros(keys + 1, np.int64)
            totals[: len(self.totals) - 1] = self.totals[:-1]
            totals[-1] = self.totals[-1]
            self.trees, self.totals = grown, totals

    def _key(self, prompt_tokens: int, priority: int) -> int:
        if self.predictor.kind == "prompt-quantile":
            return int(math.log2(max(prompt_tokens, 1)))
        return priority if self.predictor.kind == "quantile" else 0

    def observe(self, output_tokens: int, *, prompt_tokens: int = 1, priority: int = 0) -> None:
        """Count an answer that has ended."""
        if output_tokens < 1:
            raise InputError(f"an answer has at least one token, got {output_tokens}")
        key = self._key(prompt_tokens, priority)
        self.reserve(key + 1)
        self._sum += output_tokens
        _count(self.trees, self.totals, key, output_tokens)

    def predict(self, *, prompt_tokens: int = 1, priority: int = 0) -> int:
        """Return the predicted output tokens of a request that comes now."""
        if self.predictor.kind == "mean":
            total = int(self.totals[-1])
            return max(round(self._sum / total), 1) if total else PRIOR_TOKENS
        key = self._key(prompt_tokens, priority)
        self.reserve(key + 1)
        return int(look_up(self.trees, self.totals, key, self.predictor.value))


def _look_up(trees: Any, totals: Any, key: int, share: float) -> int:
    row = key if totals[key] >= ENOUGH else len(totals) - 1
    if totals[row] == 0:
        return PRIOR_TOKENS
    return quantile(trees, row, totals[row], share)  # type: ignore[no-any-return]


look_up = entry_kernel(_look_up)


@entry_kernel
def _count(trees: Any, totals: Any, key: int, output_tokens: int) -> None:
    """Count an answer under its key and under all together."""
    index = bin_of(output_tokens)
    for row in (key, len(totals) - 1):
        add(trees, row, index, 1)
        totals[row] += 1


@entry_kernel
def _replay(
    arrival_s: Any, ends_s: Any, order: Any, output: Any, keys: Any, trees: Any, totals: Any,
    share: float, answer: Any,
) -> None:  # fmt: skip
    done = 0
    everyone = len(totals) - 1
    for r in range(len(arrival_s)):
        while done < len(order) and ends_s[done] <= arrival_s[r]:
            ended = order[done]
            index = bin_of(output[ended])
            add(trees, keys[ended], index, 1)
            totals[keys[ended]] += 1
            add(trees, everyone, index, 1)
            totals[everyone] += 1
            done += 1
        row = keys[r] if totals[keys[r]] >= ENOUGH else everyone
        answer[r] = PRIOR_TOKENS
        if totals[row] > 0:
            answer[r] = quantile(trees, row, totals[row], share)


def _survival(
    trace: Trace, order: NDArray[np.int64], ends: NDArray[np.float64], share: float
) -> NDArray[np.int32]:
    """Estimate the curve anew every ``SURVIVAL_EVERY`` requests."""
    longest_s = DELAY_S + TOKEN_S * float(trace.output_tokens.max())
    answer = np.full(len(trace), PRIOR_TOKENS, np.int32)
    lengths = upper_ends()
    bins = np.searchsorted(lengths, trace.output_tokens)
    sorted_ends = ends[order]
    ended = np.zeros(BINS, np.int64)
    counted = 0
    for first in range(0, len(trace), SURVIVAL_EVERY):
        now_s = trace.arrival_s[first]
        done = int(np.searchsorted(sorted_ends, now_s, side="right"))
        np.add.at(ended, bins[order[counted:done]], 1)
        counted = done
        if not done:
            continue
        oldest = int(np.searchsorted(trace.arrival_s[:first], now_s - longest_s))
        recent = oldest + np.flatnonzero(ends[oldest:first] > now_s)
        reached = ((now_s - trace.arrival_s[recent] - DELAY_S) / TOKEN_S).astype(np.int64)
        running = np.bincount(np.searchsorted(lengths, reached[reached > 0]), minlength=BINS)
        curve = kaplan_meier(ended, running)
        beyond = np.flatnonzero(curve <= 1.0 - share + 1e-12)
        last = beyond[0] if beyond.size else np.flatnonzero(ended + running)[-1]
        answer[first : first + SURVIVAL_EVERY] = lengths[last]
    return answer


def error_summary(
    predicted: NDArray[np.int32], true: NDArray[np.int32], share: float = 0.9
) -> dict[str, float]:
    """Return how wrong predictions are: mean and median relative error, share of predictions that
    are too short, and the mean pinball loss at ``share`` in tokens."""
    error = predicted.astype(np.float64) - true
    relative = np.abs(error) / true
    return {
        "mean_relative_error": float(relative.mean()),
        "median_relative_error": float(np.median(relative)),
        "too_short": float((error < 0).mean()),
        "pinball_tokens": float(np.maximum(-share * error, (1.0 - share) * error).mean()),
    }
