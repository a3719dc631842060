"""What a weighted ensemble's votes tend to, from every model's answer rates.

With shares ``w`` of the samples, votes are draws from the mixture of the models' answers. The
limit of majority voting is right on a prompt where the right answer has the mixture's largest rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]
TIE = 1e-9
"""Rates closer than this are tied, and a tie is not right."""


@dataclass(frozen=True, slots=True)
class AnswerRates:
    """How often each model gives each answer to one prompt."""

    rates: Floats
    """Shape (models, answers); a row sums to one, or to zero where a model gave no answer."""
    gold: int
    """Column of the right answer; -1 where no model gave it."""

    def __post_init__(self) -> None:
        if self.rates.ndim != 2 or not self.rates.size:
            raise InputError(f"rates: expected models x answers, got shape {self.rates.shape}")
        if not np.isfinite(self.rates).all() or (self.rates < 0).any():
            raise InputError("rates: must be finite and not negative")
        if (self.rates.sum(axis=1) > 1 + 1e-6).any():
            raise InputError("rates: a model's rates must sum to at most one")
        if not -1 <= self.gold < self.rates.shape[1]:
            raise InputError(
                f"gold: must be a column of rates or -1, got {self.gold} of {self.rates.shape[1]}"
            )

    @property
    def leads(self) -> Floats:
        """The right answer's rate less each other's, shape (others, models): rows of (A8).

        One row of minus ones where no model gave the right answer.
        """
        if self.gold < 0:
            return np.full((1, self.rates.shape[0]), -1.0)
        others = np.delete(self.rates, self.gold, axis=1)
        leads: Floats = (self.rates[:, [self.gold]] - others).T
        # An answer nobody gave: it ties with a right answer of rate zero.
        return np.vstack([leads, self.rates[:, self.gold]])

    @classmethod
    def of_counts(cls, counts: Sequence[Mapping[str, float]], gold: str | None) -> "AnswerRates":
        """Return the rates of answers counted, one mapping a model."""
        answers = sorted({answer for model in counts for answer in model})
        if not answers:
            return cls(np.zeros((len(counts), 1)), -1)
        table = np.array([[model.get(a, 0.0) for a in answers] for model in counts], float)
        totals = table.sum(axis=1, keepdims=True)
        rates = np.divide(table, totals, out=np.zeros_like(table), where=totals > 0)
        return cls(rates, answers.index(gold) if gold in answers else -1)


def margins(prompts: Sequence[AnswerRates], weights: ArrayLike) -> Floats:
    """Return by how much the right answer leads on each prompt; not positive where it is not first."""
    w = np.asarray(weights, float)
    return np.array([(prompt.leads @ w).min() for prompt in prompts])


def limit_correct(prompts: Sequence[AnswerRates], weights: ArrayLike) -> int:
    """Return on how many prompts unlimited votes are right; ties are not."""
    return int((margins(prompts, weights) > TIE).sum())


def single_correct(prompts: Sequence[AnswerRates], weights: ArrayLike) -> float:
    """Return the mean number of prompts on which one sample is right: linear in the weights."""
    w = np.asarray(weights, float)
    return float(sum(w @ prompt.rates[:, prompt.gold] for prompt in prompts if prompt.gold >= 0))


def sweep_pair(prompts: Sequence[AnswerRates]) -> tuple[int, float, float]:
    """Return for two models the most prompts right, a weight of the first and the margin there.

    Each prompt is right on an interval of the weight; counts change only at the ends. Among the
    best intervals the weight of the largest margin is returned, by ternary search: the least of
    the right prompts' margins is concave between two ends. The oracle of the mixed-integer program.

    Raises:
        InputError: not two models.
    """
    if not prompts or prompts[0].rates.shape[0] != 2:
        raise InputError("prompts: a sweep needs rates of two models")
    ends = {0.0, 1.0}
    for prompt in prompts:
        second, slope = prompt.leads[:, 1], prompt.leads[:, 0] - prompt.leads[:, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            zero = -second / slope
        ends |= {float(end) for end in zero[np.isfinite(zero)] if 0.0 < end < 1.0}
    cuts = sorted(ends)
    best = (-1, 0.0, 0.0)
    for low, high in pairwise(cuts):
        if high - low <= TIE:
            continue
        middle = (low + high) / 2
        right = margins(prompts, (middle, 1 - middle)) > TIE
        count = int(right.sum())
        if count < best[0]:
            continue
        kept = [prompt for prompt, is_right in zip(prompts, right, strict=True) if is_right]
        at, margin = _widest(kept, low, high) if kept else (middle, 0.0)
        if (count, margin) > (best[0], best[2]):
            best = (count, at, margin)
    return best


def _widest(prompts: Sequence[AnswerRates], low: float, high: float) -> tuple[float, float]:
    """The weight of the largest margin: upper vertex of the lower envelope of lines."""
    rows = np.vstack([prompt.leads for prompt in prompts])

    def least(weight: float) -> float:
        return float((rows @ np.array([weight, 1 - weight])).min())

    for _ in range(60):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if least(a) < least(b) else (low, b)
    at = (low + high) / 2
    return at, least(at)
