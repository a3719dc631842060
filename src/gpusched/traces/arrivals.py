"""Arrival processes: Poisson, bursty and with the rhythm of day and week."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError, unknown_name

Floats = NDArray[np.float64]
DAY_S, WEEK_S = 86_400.0, 604_800.0
ARRIVALS = ("poisson", "gamma", "mmpp", "diurnal", "weekly")
DIURNAL_SWING = 0.6
WEEKDAY_OVER_WEEKEND = 2.67
"""Rate of weekdays over weekends in the Azure traces of 2024."""
MMPP_BURST, MMPP_SHARE, MMPP_MEAN_S = 3.0, 0.2, 60.0
"""Rate of the bursts over the mean, their share of time, their mean length."""


def arrival_times(
    process: str, rate_rps: float, duration_s: float, *, cv: float, rng: np.random.Generator
) -> Floats:
    """Return arrival times in ``[0, duration_s)`` of mean rate ``rate_rps``.

    ``poisson``; ``gamma``: renewal with gamma gaps of coefficient of variation ``cv``; ``mmpp``:
    Poisson modulated by a two-state Markov chain of bursts and calm; ``diurnal`` and ``weekly``:
    Poisson whose rate follows the hours, and the days as well. All but gamma are a unit-rate
    process under a change of time.

    Raises:
        InputError: no such process.
    """
    if process not in ARRIVALS:
        raise InputError(unknown_name("arrival process", process, ARRIVALS))
    if process == "gamma":
        shape = 1.0 / cv**2
        scale_s = 1.0 / (rate_rps * shape)
        return _accumulate(lambda n: rng.gamma(shape, scale_s, n), rate_rps, duration_s)
    if process == "mmpp":
        edges_s, levels = _bursts(duration_s, rng)
        expected = np.concatenate(([0.0], np.cumsum(np.diff(edges_s) * levels))) * rate_rps
    else:
        edges_s = np.linspace(0.0, duration_s, max(int(duration_s / 60.0), 1) * 4 + 1)
        middle_s = (edges_s[1:] + edges_s[:-1]) / 2
        levels = np.ones_like(middle_s)
        if process in ("diurnal", "weekly"):
            levels += DIURNAL_SWING * np.sin(2 * np.pi * (middle_s / DAY_S - 0.25))
        if process == "weekly":
            weekend = (middle_s % WEEK_S) >= 5 * DAY_S
            mean = (5 * WEEKDAY_OVER_WEEKEND + 2) / 7
            levels *= np.where(weekend, 1.0, WEEKDAY_OVER_WEEKEND) / mean
        expected = np.concatenate(([0.0], np.cumsum(np.diff(edges_s) * levels))) * rate_rps
    total = float(expected[-1])
    unit = _accumulate(lambda n: rng.exponential(1.0, n), 1.0, total)
    return np.interp(unit, expected, edges_s)


def _accumulate(draw_gaps: Callable[[int], Floats], rate: float, end: float) -> Floats:
    """Sum gaps up to ``end``."""
    parts: list[Floats] = []
    at = 0.0
    while at < end:
        n = int((end - at) * rate + 6.0 * np.sqrt((end - at) * rate) + 16.0)
        times = at + np.cumsum(draw_gaps(n))
        parts.append(times)
        at = float(times[-1])
    times = np.concatenate(parts) if parts else np.zeros(0)
    return times[times < end]


def _bursts(duration_s: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the edges of a two-state chain's stays and the relative rate of each."""
    calm = (1.0 - MMPP_SHARE * MMPP_BURST) / (1.0 - MMPP_SHARE)
    calm_mean_s = MMPP_MEAN_S * (1.0 - MMPP_SHARE) / MMPP_SHARE
    pairs = int(duration_s / (MMPP_MEAN_S + calm_mean_s) * 2) + 8
    stays_s = np.empty(2 * pairs)
    stays_s[0::2] = rng.exponential(calm_mean_s, pairs)
    stays_s[1::2] = rng.exponential(MMPP_MEAN_S, pairs)
    edges_s = np.concatenate(([0.0], np.cumsum(stays_s)))
    levels = np.tile([calm, MMPP_BURST], pairs)
    last = int(np.searchsorted(edges_s, duration_s))
    if last >= len(edges_s):
        return np.append(edges_s, duration_s), np.append(levels, calm)
    return np.append(edges_s[:last], duration_s), levels[:last]
