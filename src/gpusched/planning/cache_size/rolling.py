"""Hour by hour: forecast load and carbon intensity, schedule the next day, apply its first hour."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError
from gpusched.planning.cache_size.carbon import CacheChoices, cache_choices
from gpusched.planning.cache_size.schedule import schedule_cache
from gpusched.planning.cache_size.server import Hours, Server
from gpusched.planning.cache_size.tables import Tables
from gpusched.planning.forecast.models import forecaster

Floats = NDArray[np.float64]
HORIZON_HOURS = 24
RAISED_LOAD = 1.1
"""On the load forecast of the hour after one that missed the attainment."""
SUCH_A_LOAD = 0.9
"""Of the load of an hour that missed: from there on its size is not held again for a day."""
MOST_PASSES = 12


@dataclass(frozen=True)
class Demand:
    """Load and carbon intensity by the hour; the first ``history`` hours are past."""

    requests_per_s: Floats
    g_per_kwh: Floats
    history: int
    notes: tuple[str, ...] = ()
    """What was assumed."""

    @property
    def hours(self) -> int:
        """Hours to schedule."""
        return len(self.g_per_kwh) - self.history


@dataclass(frozen=True)
class Rolled:
    """Sizes chosen one hour at a time, each from forecasts alone."""

    sizes_tb: Floats
    """Shape (hours,)."""
    forecast_g_per_kwh: Floats
    """For each hour, made just before it, shape (hours,)."""
    forecast_rps: Floats
    relaxed: int
    """Hours at which no schedule was forecast to reach the attainment; the largest share in time was
    scheduled instead."""


def choices_for(
    server: Server, tables: Tables, requests_per_s: Floats, g_per_kwh: Floats
) -> CacheChoices:
    """Return what each size would cost and give in hours of given load and intensity."""
    power, share, written = tables.at(requests_per_s)
    return cache_choices(
        tables.sizes_tb, power, share, requests_per_s * 3600.0, g_per_kwh, pue=server.pue,
        ssd_kg_per_tb=server.cache.ssd.kg_per_tb,
        ssd_lifetime_hours=server.cache.lifetime_years * 8760.0,
        other_g_per_hour=server.other_g_per_hour, written_tb_per_hour=written,
        endurance=server.cache.ssd.endurance,
    )  # fmt: skip


def attainment_asked(server: Server) -> float:
    """Return the share of requests that must meet their objectives: the strictest class's."""
    return max(bounds.attainment for bounds in server.slo.classes.values())


def roll(
    server: Server,
    tables: Tables,
    demand: Demand,
    *,
    start_tb: float | None = None,
    missed: Collection[int] = (),
) -> Rolled:
    """Return the sizes of rolling schedules of 24 hours.

    After the hours in ``missed`` the size may not fall and the load is forecast 10 % higher; and for a
    day the size that missed is not held again at such a load, but a larger one.

    Raises:
        InfeasibleError: the very first schedule cannot reach the attainment.
    """
    cache, asked = server.cache, attainment_asked(server)
    load_model = forecaster(cache.load_forecast, 24)
    carbon_model = forecaster(cache.carbon_forecast, 24)
    sizes: list[float] = []
    intensities: list[float] = []
    loads: list[float] = []
    relaxed, held_tb = 0, start_tb
    fill_tb = tables.written_tb_per_request.max()
    for hour in range(demand.hours):
        now = demand.history + hour
        load = np.maximum(load_model(demand.requests_per_s[:now], HORIZON_HOURS), 1e-6)
        if hour - 1 in missed:
            load = load * RAISED_LOAD
        intensity = np.maximum(carbon_model(demand.g_per_kwh[:now], HORIZON_HOURS), 0.0)
        choices = choices_for(server, tables, load, intensity)
        try:
            size = schedule_cache(
                choices, asked, each_interval=cache.each_hour, start_tb=held_tb,
                change_g_per_tb=cache.change_g_per_tb, method="price",
                growth_tb=load * 3600.0 * fill_tb if cache.growth_limit else np.inf,
            ).sizes_tb[0]  # fmt: skip
        except InfeasibleError:
            if hour == 0:
                raise
            relaxed += 1
            size = choices.sizes_tb[int(choices.attainment[0].argmax())]
        if hour - 1 in missed and held_tb is not None:
            size = max(size, held_tb)
        for before in range(max(hour - HORIZON_HOURS, 0), hour):
            seen = demand.requests_per_s[demand.history + before]
            if before in missed and load[0] >= SUCH_A_LOAD * seen:
                size = max(size, _next_above(tables.sizes_tb, sizes[before]))
        held_tb = float(size)
        sizes.append(held_tb)
        intensities.append(float(intensity[0]))
        loads.append(float(load[0]))
    return Rolled(np.array(sizes), np.array(intensities), np.array(loads), relaxed)


def _next_above(sizes_tb: Floats, size_tb: float) -> float:
    """Return the next larger size, the largest if there is none."""
    return float(sizes_tb[min(int((sizes_tb <= size_tb).sum()), len(sizes_tb) - 1)])


def guarded(
    server: Server,
    tables: Tables,
    demand: Demand,
    serve: Callable[[Floats], Hours],
    *,
    start_tb: float | None = None,
) -> tuple[Rolled, Hours, tuple[int, ...]]:
    """Roll and serve with the guard: an hour that misses the attainment, by more than a standard error,
    binds those after it.

    What happens in an hour depends on the sizes up to it alone, so passes over all hours settle the
    guard hour by hour; the hours it acted after are returned too.
    """
    asked = attainment_asked(server)
    missed: set[int] = set()
    for _ in range(MOST_PASSES):
        rolled = roll(server, tables, demand, start_tb=start_tb, missed=missed)
        hours = serve(rolled.sizes_tb)
        noise = np.sqrt(asked * (1 - asked) / np.maximum(hours.requests, 1.0))
        found = {int(h) for h in np.flatnonzero(hours.attainment < asked - noise)}
        if found == missed:
            break
        missed = found
    return rolled, hours, tuple(sorted(missed))


def grams(
    server: Server, hours: Hours, g_per_kwh: Floats, *, ssd_kg_per_tb: float | None = None
) -> tuple[float, float, float]:
    """Return the operational carbon of hours served, the embodied carbon of their SSD, and that of all
    else, g CO2e, by the actual intensity."""
    cache = server.cache
    kg = cache.ssd.kg_per_tb if ssd_kg_per_tb is None else ssd_kg_per_tb
    lives = hours.size_tb / (cache.lifetime_years * 8760.0)
    if cache.ssd.endurance is not None:
        worn = hours.written_tb_per_hour / cache.ssd.endurance
        lives = np.where(hours.size_tb > 0, np.maximum(lives, worn), 0.0)
    operational = float((server.pue * hours.power_w / 1e3 * g_per_kwh).sum())
    return operational, float(1e3 * kg * lives.sum()), server.other_g_per_hour * len(lives)
