"""Forecasts as they would have been made: at each origin from what was known then, with a band."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.planning.forecast.band import checked_series
from gpusched.planning.forecast.models import Model

Floats = NDArray[np.float64]
FEWEST_ERRORS = 12
"""Past forecasts with which a band is taken from them; with fewer it is a fixed margin."""
MARGIN = 0.3


@dataclass(frozen=True)
class RollingForecast:
    """Forecasts from each origin; the first axis is the origin, the second the step ahead."""

    origin: NDArray[np.int64]
    """Values known when the forecast was made."""
    mean: Floats
    band: Floats
    """Demand stays below with the probability asked, by the errors seen until then."""
    actual: Floats
    """What came; nan beyond the series."""

    @property
    def mean_absolute_percent(self) -> float:
        """Mean absolute error as a share of the mean demand, percent."""
        seen = np.isfinite(self.actual)
        error = np.abs(self.actual - self.mean)[seen].mean()
        return float(100 * error / max(self.actual[seen].mean(), 1e-12))

    @property
    def coverage(self) -> float:
        """Share of the values that stayed below the band."""
        seen = np.isfinite(self.actual)
        return float((self.actual <= self.band)[seen].mean())


def rolling_forecast(
    series: ArrayLike,
    model: Model,
    horizon: int,
    *,
    first: int,
    every: int = 1,
    level: float = 0.9,
    memory: int = 432,
) -> RollingForecast:
    """Return forecasts of ``horizon`` values from ``first`` known values on, every ``every``.

    The band of an origin rests on errors of the latest ``memory`` forecasts whose values had come by
    then (conformal, relative to the forecast); before there are any, 30 % are added.

    Raises:
        InputError: the series is shorter than ``first``, or the level no probability.
    """
    values = checked_series(series)
    if not 2 <= first <= len(values):
        raise InputError(
            f"forecast: {len(values)} values are known, {first} are wanted before the first "
            "forecast; give a longer history"
        )
    if not 0 < level < 1:
        raise InputError(f"level: must lie between 0 and 1, got {level:g}")
    origins = np.arange(first, len(values) + 1, every)
    mean = np.stack([np.maximum(model(values[:at], horizon), 0.0) for at in origins])
    padded = np.concatenate((values, np.full(horizon, np.nan)))
    actual = np.stack([padded[at : at + horizon] for at in origins])
    least = 1e-9 + 0.02 * float(values[:first].mean())
    ratio = actual / np.maximum(mean, least)
    known = np.searchsorted(origins + horizon, origins, side="right")
    band = np.empty_like(mean)
    for k, count in enumerate(known):
        past = ratio[max(count - memory, 0) : count]
        if len(past) < FEWEST_ERRORS:
            factor = np.full(horizon, 1.0 + MARGIN)
        else:
            rank = min(int(np.ceil(level * (len(past) + 1))) - 1, len(past) - 1)
            factor = np.partition(past, rank, axis=0)[rank]
        band[k] = np.maximum(mean[k], least) * factor
    return RollingForecast(origins, mean, band, actual)
