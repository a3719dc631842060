"""Whether traffic has drifted so far that a cascade should be planned anew."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ks_2samp

from gpusched.errors import InputError

Floats = NDArray[np.float64]
CHANGE = 0.2
"""Relative change of the rate or of a mean length that counts."""
SIGNIFICANCE = 0.01


@dataclass(frozen=True, slots=True)
class Traffic:
    """A sample of recent requests."""

    rate_rps: float
    prompt_tokens: Floats
    output_tokens: Floats
    scores: Floats
    """Of the first model's answers."""


def traffic(
    rate_rps: float, prompt_tokens: ArrayLike, output_tokens: ArrayLike, scores: ArrayLike
) -> Traffic:
    """Return a sample from plain sequences.

    Raises:
        InputError: a column is empty or holds what is no number.
    """
    columns = {}
    for name, values in (
        ("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens), ("scores", scores),
    ):  # fmt: skip
        column = np.asarray(values, np.float64)
        if not column.size or not np.isfinite(column).all():
            raise InputError(f"{name}: needs at least one value, all of them finite numbers")
        columns[name] = column
    return Traffic(rate_rps, **columns)


def drift(planned: Traffic, recent: Traffic) -> tuple[str, ...]:
    """Return what has drifted, in words; nothing where the plan still fits.

    Rate and mean lengths count when they change by a fifth, distributions of lengths and scores when
    a Kolmogorov-Smirnov test tells them apart at 1 %, divided by the number of tests.
    """
    reasons = []
    for name, before, now in (
        ("rate", planned.rate_rps, recent.rate_rps),
        ("mean prompt", float(planned.prompt_tokens.mean()), float(recent.prompt_tokens.mean())),
        ("mean output", float(planned.output_tokens.mean()), float(recent.output_tokens.mean())),
    ):
        change = now / before - 1.0
        if abs(change) > CHANGE:
            reasons.append(f"{name}: {before:.4g} to {now:.4g} ({change:+.0%})")
    tests = ("prompt_tokens", "output_tokens", "scores")
    for name in tests:
        found = ks_2samp(getattr(planned, name), getattr(recent, name))
        if found.pvalue < SIGNIFICANCE / len(tests):
            reasons.append(f"distribution of {name}: apart by {found.statistic:.2f}")
    return tuple(reasons)
