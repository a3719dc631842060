"""Curves with no more points than a screen shows."""

import numpy as np
from numpy.typing import NDArray

from gpusched.report.svg import Line

POINTS = 300


def cumulative(name: str, values: NDArray[np.float64]) -> Line:
    """Return the distribution function of a sample; the tail keeps its exact order statistics."""
    values = np.sort(values[np.isfinite(values)])
    n = len(values)
    if not n:
        return Line(name, np.zeros(0), np.zeros(0))
    body = np.linspace(0, n - 1, POINTS)
    tail = n - 1 - np.geomspace(1, max(n * 0.01, 1), 60)
    ranks = np.unique(np.clip(np.concatenate((body, tail)), 0, n - 1).astype(np.int64))
    return Line(name, values[ranks], (ranks + 1) / n)


def over_time(name: str, edges_s: NDArray[np.float64], values: NDArray[np.float64]) -> Line:
    """Return a series of bin means, neighbouring bins joined; times are bin centres."""
    group = -(-len(values) // POINTS)
    whole = len(values) // group * group
    widths = np.diff(edges_s)[:whole].reshape(-1, group)
    blocks = values[:whole].reshape(-1, group)
    total = np.maximum(widths.sum(axis=1), 1e-12)
    centres = (edges_s[:whole:group] + edges_s[group : whole + 1 : group]) / 2
    return Line(name, centres, (blocks * widths).sum(axis=1) / total)
