"""A store of KV cache outside the engines, DRAM before SSD, and what holding it costs the climate."""

from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from gpusched.domain.document import Section, absolute_path

ForecastModel = Literal["last-day", "last-week", "harmonic", "arima"]
LOAD_SHAPES = ("flat", "diurnal", "weekly")
FILES = (".csv", ".parquet")


class StoreTier(Section):
    """One kind of memory of the store."""

    gb_per_s: float = Field(gt=0, le=1e5)
    """Reading, all drives or channels together."""
    latency_ms: float = Field(ge=0, le=1e4)
    watts_per_tb: float = Field(ge=0, le=1e4)
    kg_per_tb: float = Field(ge=0, le=1e4)
    """Embodied carbon, kg CO2e."""


class Dram(StoreTier):
    """Main memory of the hosts, of a fixed size."""

    tb: float = Field(default=0.0, ge=0, le=1e4)
    gb_per_s: float = Field(default=50.0, gt=0, le=1e5)
    latency_ms: float = Field(default=0.05, ge=0, le=1e4)
    watts_per_tb: float = Field(default=300.0, ge=0, le=1e4)
    kg_per_tb: float = Field(default=65.0, ge=0, le=1e4)
    """65 g/GB for DDR4 (ACT, Gupta et al., ISCA 2022)."""


class Ssd(StoreTier):
    """Flash, whose size is chosen hour by hour."""

    gb_per_s: float = Field(default=12.0, gt=0, le=1e5)
    latency_ms: float = Field(default=0.2, ge=0, le=1e4)
    watts_per_tb: float = Field(default=1.5, ge=0, le=1e4)
    kg_per_tb: float = Field(default=30.0, ge=0, le=1e4)
    """Published values lie between 4 and 160; every report shows 6, 30 and 160 beside this one."""
    endurance: float | None = Field(default=None, gt=0, le=1e6)
    """Terabytes that may be written for each terabyte of flash over its life: 1825 for one drive write
    a day in five years. Wear is not counted if not given."""


class Cache(Section):
    """The prompt cache of ``gpusched scale`` with ``objective: carbon``."""

    sizes_tb: tuple[float, ...] = Field(
        default=(0.0, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0), min_length=1, max_length=64
    )
    """Sizes of flash to choose from, ascending."""
    ssd: Ssd = Ssd()
    dram: Dram = Dram()
    eviction: str = "least-carbon-savings"
    lifetime_years: float = Field(default=5.0, gt=0, le=30)
    carbon: str | None = None
    """Carbon intensity by the hour: a zone with a built-in profile, or a CSV or parquet file with a
    column ``g_per_kwh``, history first. That of the nodes' region if not given."""
    month: int = Field(default=7, ge=1, le=12)
    """Month of the built-in profile."""
    load: str = "diurnal"
    """``flat``, ``diurnal`` or ``weekly`` around the workload's mean rate, or a CSV or parquet file with
    a column ``requests_per_s``, an hour a row, history first."""
    days: int = Field(default=1, ge=1, le=14)
    """Days to schedule and simulate; what comes before them is history."""
    history_days: int = Field(default=14, ge=1, le=400)
    """History made up where no file gives one."""
    load_forecast: ForecastModel = "last-day"
    carbon_forecast: ForecastModel = "last-day"
    each_hour: bool = False
    """Whether every hour must reach the attainment, instead of the day."""
    growth_limit: bool = True
    """Whether the cache may grow in an hour only by what an hour's prompts can fill."""
    change_g_per_tb: float = Field(default=0.0, ge=0, le=1e6)
    """Carbon charged for each terabyte added or given up."""
    host_w: float = Field(default=300.0, ge=0, le=1e5)
    """Power of one node beside its GPUs and the store."""

    @field_validator("sizes_tb")
    @classmethod
    def _check_sizes(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if sizes[0] < 0 or any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"must ascend from 0 or more, such as [0, 1, 2, 4, 8]; got {sizes}")
        return sizes

    @model_validator(mode="after")
    def _check_load(self) -> "Cache":
        if self.load not in LOAD_SHAPES and not self.load.endswith(FILES):
            raise ValueError(
                f"load: must be {', '.join(LOAD_SHAPES)}, or a .csv or .parquet file; got {self.load!r}"
            )
        return self


def resolve_cache(values: dict[str, object], folder: Path) -> dict[str, object]:
    """Return the section with the paths it names made absolute."""
    found = dict(values)
    for name in ("carbon", "load"):
        value = found.get(name)
        if isinstance(value, str) and value.endswith(FILES):
            found[name] = absolute_path(value, folder)
    return found
