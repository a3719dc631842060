"""Forecasts of an evenly spaced series: last season again, harmonics with a daily memory, ARIMA.

Each is a function ``(history, horizon) -> forecast`` that looks at the history alone.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError, unknown_name

Floats = NDArray[np.float64]
Model = Callable[[Floats, int], Floats]
ARIMA_STEPS = 24
"""Steps of a season that ARIMA is fitted to; its cost grows steeply with them."""


def last_season(season: int) -> Model:
    """Return the model that repeats the last whole season, or as much of it as there is."""

    def forecast(history: Floats, horizon: int) -> Floats:
        period = min(season, len(history))
        return history[len(history) - period + np.arange(horizon) % period]

    return forecast


@dataclass(frozen=True, slots=True)
class Harmonics:
    """Sines and cosines of one season."""

    season: int
    pairs: int


def harmonic(seasons: Sequence[Harmonics]) -> Model:
    """Return the model of harmonics by ridge regression, with the last error fading as an AR(1).

    Seasons longer than half the history are left out.
    """

    def forecast(history: Floats, horizon: int) -> Floats:
        n = len(history)
        used = [part for part in seasons if 2 * part.season <= n]
        seen, ahead = (_design(used, np.arange(*span)) for span in ((0, n), (n, n + horizon)))
        ridge = 1e-6 * n * np.eye(seen.shape[1])
        weights = np.linalg.solve(seen.T @ seen + ridge, seen.T @ history)
        errors = history - seen @ weights
        before, after = errors[:-1], errors[1:]
        fade = float(before @ after) / max(float(before @ before), 1e-12) if n > 2 else 0.0
        fade = min(max(fade, 0.0), 0.99)
        fading = fade ** np.arange(1, horizon + 1, dtype=np.float64)
        return np.asarray(ahead @ weights + errors[-1] * fading, np.float64)

    return forecast


def arima(season: int) -> Model:
    """Return the ARIMA(1,0,1)(1,1,1) model of one season of 24 steps, of the ``forecast`` extra.

    Shorter steps are taken together to 24 a season. The model is fitted anew once a season and
    carried forward in between. Where it does not converge, or the history is shorter than two
    seasons, the last season stands in and a warning says so.

    Raises:
        InputError: the extra is not installed.
    """
    try:
        from statsforecast.models import ARIMA
    except ImportError:
        raise InputError(
            "forecast arima: statsforecast is not installed; install it with: "
            "pip install 'gpusched[forecast]', or use harmonic or last-season"
        ) from None
    fallback = last_season(season)
    together = max(1, season // ARIMA_STEPS)
    steps = season // together
    fitted: dict[bytes, Any] = {}

    def forecast(history: Floats, horizon: int) -> Floats:
        whole = len(history) // together
        if whole < 2 * steps + 2:
            return fallback(history, horizon)
        recent = history[len(history) - whole * together :]
        series = recent.reshape(whole, together).mean(axis=1)
        known = history[: len(history) // season * season]
        key = known.tobytes()
        try:
            if key not in fitted:
                model = ARIMA(order=(1, 0, 1), season_length=steps, seasonal_order=(1, 1, 1))
                fitted[key] = model.fit(known.reshape(-1, together).mean(axis=1))
            ahead = -(-horizon // together)
            found = np.asarray(fitted[key].forward(series, ahead)["mean"], np.float64)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            warnings.warn(f"ARIMA did not converge ({error}); last season instead", stacklevel=2)
            return fallback(history, horizon)
        if not np.isfinite(found).all():
            warnings.warn("ARIMA gave no number; last season instead", stacklevel=2)
            return fallback(history, horizon)
        return np.repeat(found, together)[:horizon]

    return forecast


def forecaster(name: str, steps_per_day: int) -> Model:
    """Return a model by name, its seasons a day and a week.

    Raises:
        InputError: no such model.
    """
    day, week = steps_per_day, 7 * steps_per_day
    match name:
        case "last-day":
            return last_season(day)
        case "last-week":
            return last_season(week)
        case "harmonic":
            return harmonic((Harmonics(day, min(4, day // 2)), Harmonics(week, min(6, week // 2))))
        case "arima":
            return arima(day)
        case _:
            known = ("last-day", "last-week", "harmonic", "arima")
            raise InputError(unknown_name("forecast", name, known))


def _design(seasons: Sequence[Harmonics], at: NDArray[np.int64]) -> Floats:
    columns = [np.ones(len(at))]
    for part in seasons:
        for k in range(1, part.pairs + 1):
            angle = 2 * np.pi * k * at / part.season
            columns += [np.cos(angle), np.sin(angle)]
    return np.stack(columns, axis=1)
