"""Load and carbon intensity by the hour, from files, shapes and built-in profiles."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpusched.domain.cache import FILES, LOAD_SHAPES, Cache
from gpusched.domain.carbon import ZONE_OF_REGION, carbon_profile
from gpusched.domain.spec import Spec
from gpusched.errors import InputError
from gpusched.planning.cache_size.rolling import Demand
from gpusched.planning.forecast.band import fill_gaps
from gpusched.traces.arrivals import DIURNAL_SWING, WEEKDAY_OVER_WEEKEND

Floats = NDArray[np.float64]
LOAD_NOISE = 0.1
"""Standard deviation of the logarithm of an hour's load around a made-up shape."""
DAY = 24


def demand_of(spec: Spec, mean_rps: float, *, seed: int = 0) -> Demand:
    """Return the demand of a spec with a cache; made-up loads have the mean rate given.

    A history shorter than a day, gaps and stand-ins are told in the notes.

    Raises:
        InputError: a file that cannot be read, lacks the column or is too short.
    """
    cache = spec.cache
    assert cache is not None
    notes: list[str] = []
    hours = cache.days * DAY
    load = _load(cache, mean_rps, seed, notes)
    intensity = _intensity(spec, cache, notes)
    total = min((len(series) for series in (load, intensity) if series is not None), default=0) or (
        cache.history_days * DAY + hours
    )
    if load is None:
        load = load_shape(cache.load, mean_rps, total, seed)
        notes.append(
            f"load: {cache.load} around {mean_rps:.4g} requests a second, with noise of "
            f"{LOAD_NOISE:.0%}; give a file of hourly loads for your own"
        )
    if intensity is None:
        intensity, note = _built_in(spec, cache, total)
        notes.append(note)
    if total <= hours:
        raise InputError(
            f"cache: {total} hours of load and carbon intensity leave no history before the {hours} to "
            f"schedule; give at least {hours + 1}, better {hours + 7 * DAY}, or lower cache.days"
        )
    history = total - hours
    if history < 2 * DAY:
        notes.append(
            f"history: only {history} hours; "
            + (
                "the forecast repeats them"
                if history < DAY
                else "too short for a weekly rhythm, the forecast knows yesterday alone"
            )
        )
    return Demand(load[-total:], intensity[-total:], history, tuple(notes))


def load_shape(shape: str, mean_rps: float, hours: int, seed: int) -> Floats:
    """Return hourly loads that are flat, follow the day, or the day and the week."""
    hour = np.arange(hours) + 0.5
    level = np.ones(hours)
    if shape != "flat":
        level += DIURNAL_SWING * np.sin(2 * np.pi * (hour / DAY - 0.375))
    if shape == "weekly":
        mean = (5 * WEEKDAY_OVER_WEEKEND + 2) / 7
        level *= np.where(hour % (7 * DAY) >= 5 * DAY, 1.0, WEEKDAY_OVER_WEEKEND) / mean
    noise = np.random.default_rng([seed, 5]).normal(-(LOAD_NOISE**2) / 2, LOAD_NOISE, hours)
    return np.asarray(mean_rps * level * np.exp(noise))


def read_series(path: Path, column: str) -> tuple[Floats, int]:
    """Return a column of hourly values with gaps filled, and how many gaps there were.

    Raises:
        InputError: the file cannot be read or has no such column of numbers.
    """
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pa_csv.read_csv(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot read the hourly values ({reason})") from None
    if column not in table.column_names:
        raise InputError(
            f"{path}: has no column {column}; columns are {', '.join(table.column_names)}"
        )
    try:
        values = table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        raise InputError(f"{path}: column {column} holds something that is no number") from None
    if not np.isfinite(values).any():
        raise InputError(f"{path}: column {column} holds no number")
    filled, gaps = fill_gaps(values, DAY)
    if (filled < 0).any():
        at = int(np.flatnonzero(filled < 0)[0])
        raise InputError(f"{path}: {column} is negative in row {at + 1}; expected 0 or more")
    return filled, gaps


def _load(cache: Cache, mean_rps: float, seed: int, notes: list[str]) -> Floats | None:
    if cache.load in LOAD_SHAPES:
        return None
    load, gaps = read_series(Path(cache.load), "requests_per_s")
    if gaps:
        notes.append(f"load: {gaps} missing hours taken from the day before or after")
    return load


def _intensity(spec: Spec, cache: Cache, notes: list[str]) -> Floats | None:
    if cache.carbon is None or not cache.carbon.endswith(FILES):
        return None
    intensity, gaps = read_series(Path(cache.carbon), "g_per_kwh")
    if gaps:
        notes.append(f"carbon intensity: {gaps} missing hours taken from the day before or after")
    return intensity


def _built_in(spec: Spec, cache: Cache, hours: int) -> tuple[Floats, str]:
    region = spec.cluster.nodes[0].region
    zone = cache.carbon or ZONE_OF_REGION.get(region)
    if zone is None:
        grams = 1e3 * spec.cluster.kg_per_kwh(0)
        return np.full(hours, grams), (
            f"carbon intensity: {grams:.4g} g/kWh at all hours, the yearly mean of {region}; give "
            "cache.carbon a zone or a file of hourly values"
        )
    day = np.array(carbon_profile(zone, cache.month))
    return np.tile(day, hours // DAY + 1)[:hours], (
        f"carbon intensity: mean day of zone {zone} in month {cache.month} of 2022 (Electricity Maps, "
        "ODbL), the same every day, so its forecast is exact; give cache.carbon a file for real ones"
    )
