"""How far to trust a forecast: its errors on the past, rolled forward, become its band."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.planning.forecast.models import Model

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Backtest:
    """Forecasts of the past, each from what came before it alone."""

    origin: NDArray[np.int64]
    """Values known when the forecast was made, shape (origins,)."""
    forecast: Floats
    """Shape (origins, horizon)."""
    actual: Floats
    """Shape (origins, horizon)."""

    @property
    def errors(self) -> Floats:
        """Actual minus forecast, shape (origins, horizon)."""
        return self.actual - self.forecast

    @property
    def mean_absolute_percent(self) -> float:
        """Mean absolute error as a share of the mean demand, percent."""
        return float(100 * np.abs(self.errors).mean() / max(self.actual.mean(), 1e-12))


def backtest(
    series: ArrayLike, model: Model, horizon: int, *, first: int, every: int = 1
) -> Backtest:
    """Return forecasts from rolling origins: after ``first`` values, then ``every`` so many.

    Raises:
        InputError: the series is too short for one forecast.
    """
    values = checked_series(series)
    origins = np.arange(first, len(values) - horizon + 1, every)
    if not len(origins) or first < 2:
        raise InputError(
            f"forecast: {len(values)} values are too few to try a forecast of {horizon} after "
            f"{first}; give at least {first + horizon}"
        )
    found = np.stack([np.maximum(model(values[:at], horizon), 0.0) for at in origins])
    actual = np.stack([values[at : at + horizon] for at in origins])
    return Backtest(origins, found, actual)


def quantile_band(past: Backtest, forecast: Floats, level: float) -> Floats:
    """Return the forecast raised so that demand stayed below it in ``level`` of past cases, by step
    ahead (split conformal, errors relative to the forecast's size).

    Raises:
        InputError: the level lies outside 0 to 1.
    """
    if not 0 < level < 1:
        raise InputError(f"level: must lie between 0 and 1, got {level}")
    scale = np.maximum(past.forecast, 1e-9 + 0.05 * past.actual.mean())
    ratio = np.sort(past.errors / scale, axis=0)
    n = len(ratio)
    rank = min(int(np.ceil(level * (n + 1))) - 1, n - 1)
    own = np.maximum(forecast, 1e-9 + 0.05 * past.actual.mean())
    raised = forecast + ratio[max(rank, 0), : len(forecast)] * own
    return np.asarray(np.maximum(raised, 0.0))


def best_model(
    series: ArrayLike, models: Mapping[str, Model], horizon: int, *, first: int, every: int
) -> tuple[str, dict[str, float]]:
    """Return the model with the least error on rolling origins, and each model's error in percent."""
    errors = {
        name: backtest(series, model, horizon, first=first, every=every).mean_absolute_percent
        for name, model in models.items()
    }
    return min(errors, key=lambda name: errors[name]), errors


def checked_series(series: ArrayLike) -> Floats:
    """Return a series as an array.

    Raises:
        InputError: a value is missing, negative or no number.
    """
    values = np.asarray(series, np.float64)
    if values.ndim != 1:
        raise InputError(f"series: expected one value after another, got shape {values.shape}")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InputError(f"series: value {at} is missing; fill gaps first (fill_gaps)")
    if (values < 0).any():
        raise InputError(f"series: value {int(np.flatnonzero(values < 0)[0])} is negative")
    return values


def fill_gaps(series: ArrayLike, season: int) -> tuple[Floats, int]:
    """Return the series with gaps (nan) filled, and how many: by the value a season before, or
    after, else by the mean."""
    values = np.array(series, np.float64)
    gaps = np.flatnonzero(~np.isfinite(values))
    known = values[np.isfinite(values)]
    mean = float(known.mean()) if len(known) else 0.0
    for at in gaps:
        if at >= season and np.isfinite(values[at - season]):
            values[at] = values[at - season]
        elif at + season < len(values) and np.isfinite(values[at + season]):
            values[at] = values[at + season]
        else:
            values[at] = mean
    return values, len(gaps)
