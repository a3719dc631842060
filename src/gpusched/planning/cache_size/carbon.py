"""Carbon of an hour of serving by the size of the cache held (GreenCache, arXiv 2505.23970)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]
SSD_KG_PER_TB = 30.0
"""Embodied carbon of a terabyte of flash. Published values lie between 4 and 160."""
SSD_KG_PER_TB_RANGE = (6.0, 30.0, 160.0)
SSD_LIFETIME_HOURS = 43_800.0


@dataclass(frozen=True, slots=True)
class CacheChoices:
    """What each size of the cache would cost and give in each interval."""

    sizes_tb: Floats
    """Shape (sizes,), ascending."""
    carbon_g: Floats
    """Shape (intervals, sizes)."""
    requests: Floats
    """Expected in each interval, shape (intervals,)."""
    attainment: Floats
    """Share of the requests that meet their objectives, shape (intervals, sizes)."""

    def __post_init__(self) -> None:
        intervals, sizes = len(self.requests), len(self.sizes_tb)
        if not intervals or not sizes:
            raise InputError("cache sizes: give at least one interval and one size")
        for name in ("carbon_g", "attainment"):
            table = getattr(self, name)
            if table.shape != (intervals, sizes):
                raise InputError(
                    f"{name}: has shape {table.shape}, expected {(intervals, sizes)} "
                    "(intervals, sizes)"
                )
            if not np.isfinite(table).all():
                raise InputError(f"{name}: holds a value that is not a finite number")
        if (np.diff(self.sizes_tb) <= 0).any() or self.sizes_tb[0] < 0:
            raise InputError("sizes_tb: must ascend from 0 or more")


def cache_choices(
    sizes_tb: ArrayLike,
    power_w: ArrayLike,
    attainment: ArrayLike,
    requests: ArrayLike,
    g_per_kwh: ArrayLike,
    *,
    interval_hours: float = 1.0,
    pue: float = 1.0,
    ssd_kg_per_tb: float = SSD_KG_PER_TB,
    ssd_lifetime_hours: float = SSD_LIFETIME_HOURS,
    other_g_per_hour: float = 0.0,
    written_tb_per_hour: ArrayLike = 0.0,
    endurance: float | None = None,
) -> CacheChoices:
    """Return the choices from tables of power and attainment, both of shape (intervals, sizes).

    ``C[t, s] = hours (PUE P[t, s] / 1000 CI[t] + s e_ssd / LT + other)``: flash that is not held is
    taken to serve someone else, who then bears its embodied carbon. With ``endurance``, the terabytes
    that a terabyte of flash can be written, writing ``written_tb_per_hour``, of the tables' shape,
    shortens its life: ``LT = min(ssd_lifetime_hours, endurance s / written)``.
    """
    sizes, power = np.asarray(sizes_tb, np.float64), np.asarray(power_w, np.float64)
    intensity = np.asarray(g_per_kwh, np.float64)
    lives_per_hour = sizes / ssd_lifetime_hours
    if endurance is not None:
        worn = np.asarray(written_tb_per_hour, np.float64) / endurance
        lives_per_hour = np.where(sizes > 0, np.maximum(lives_per_hour, worn), 0.0)
    held_g_per_hour = ssd_kg_per_tb * 1e3 * lives_per_hour
    operational = pue * power / 1e3 * intensity[:, None]
    carbon = interval_hours * (operational + held_g_per_hour + other_g_per_hour)
    return CacheChoices(
        sizes, carbon, np.asarray(requests, np.float64), np.asarray(attainment, np.float64)
    )
