"""Length and session profiles of generated traffic, fitted to public traces."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from gpusched.errors import InputError, unknown_name

LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Shares at which quantile tables are kept; between them the logarithm is linear."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Quantiles of lengths at ``LEVELS``; sessions where ``rounds`` is given."""

    name: str
    prompt_tokens: tuple[float, ...]
    """Of the whole prompt, or of a session's first prompt."""
    output_tokens: tuple[float, ...]
    correlation: float
    """Spearman's rank correlation of prompt and output."""
    source: str
    rounds: tuple[float, ...] = ()
    """Requests of a session."""
    growth_tokens: tuple[float, ...] = ()
    """New prompt tokens of a later round."""
    think_s: tuple[float, ...] = ()
    """Pause before a later round: tools and people."""
    shared_tokens: int = 0
    """Leading tokens that all sessions share, such as a system prompt and tools."""
    max_context_tokens: int = 1_000_000
    documents: int = 0
    """Documents that are asked about: ``prompt_tokens`` are a document's, ``growth_tokens`` a
    question's."""
    popularity: float = 0.0
    """The n-th most asked document is asked in proportion to ``n ** -popularity`` (Zipf)."""


@cache
def profiles() -> dict[str, Profile]:
    """Return all profiles by name."""
    text = resources.files("gpusched.traces").joinpath("profiles.toml").read_text("utf-8")
    known = {}
    for name, row in tomllib.loads(text).items():
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        known[name] = Profile(name=name, **fields)
    return known


def load_profile(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        InputError: no such profile.
    """
    if name not in profiles():
        raise InputError(unknown_name("profile", name, profiles()))
    return profiles()[name]


def draw(quantiles: tuple[float, ...], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values at the given shares of a quantile table."""
    return np.asarray(np.exp(np.interp(shares, LEVELS, np.log(quantiles))))


def paired_shares(
    rng: np.random.Generator, n: int, correlation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pairs of uniform draws with a rank correlation, by a Gaussian copula."""
    pearson = 2.0 * np.sin(np.pi * correlation / 6.0)
    first = rng.standard_normal(n)
    second = pearson * first + np.sqrt(1.0 - pearson**2) * rng.standard_normal(n)
    return ndtr(first), ndtr(second)
