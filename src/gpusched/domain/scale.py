"""What is asked of ``gpusched scale``: models, regions, tiers of requests, demand over time."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.document import Section, absolute_path, load_document, validate
from gpusched.domain.engine import EngineSettings
from gpusched.domain.names import GpuName, ModelName
from gpusched.domain.slo import Slo, SloClasses
from gpusched.domain.spec import KvDtype, WeightsDtype
from gpusched.domain.workload import Arrivals

DAY_S = 86_400.0
ForecastName = Literal["auto", "last-day", "last-week", "harmonic", "arima"]


class ScaledModel(Section):
    """A model and the instance that serves it."""

    model: ModelName
    gpu: GpuName
    gpus: int = Field(default=1, ge=1, le=64)
    """GPUs of one instance (tensor parallel)."""
    weights_dtype: WeightsDtype | None = None
    kv_cache_dtype: KvDtype = "bf16"
    engine: EngineSettings = EngineSettings(max_num_seqs=64)
    startup_s: float = Field(default=600.0, ge=0, le=86_400)
    """From the command to start an instance until it takes requests."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the demand."""

    @property
    def dtype(self) -> str:
        """Format of the weights."""
        return self.weights_dtype or load_model(self.model).native_dtype


class Region(Section):
    """Where requests come from and instances stand."""

    name: str = Field(min_length=1, max_length=63)
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the demand."""
    shift_h: float = Field(default=0.0, ge=-24, le=24)
    """Hours that the day here lies behind the demand's clock."""
    usd_per_gpu_hour: float | None = Field(default=None, ge=0, le=1e5)
    most_gpus: int | None = Field(default=None, ge=1)
    """GPUs that the region can hold, over all models."""


class Tier(Section):
    """One kind of requests: interactive with latency bounds, or deferrable with a deadline."""

    ttft_s: float | None = Field(default=None, gt=0, le=1e6)
    tpot_s: float | None = Field(default=None, gt=0, le=1e6)
    e2e_s: float | None = Field(default=None, gt=0, le=1e7)
    deadline_s: float | None = Field(default=None, gt=0, le=1e7)
    """The whole answer by then, from arrival; the request may wait outside until then."""
    attainment: float = Field(default=0.99, gt=0, le=1)
    share: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> "Tier":
        bounds = [b for b in (self.ttft_s, self.tpot_s, self.e2e_s) if b is not None]
        if self.deadline_s is None and not bounds:
            raise ValueError("give ttft_s, tpot_s or e2e_s, or deadline_s for deferrable requests")
        if self.deadline_s is not None and bounds:
            raise ValueError("deadline_s (deferrable) excludes ttft_s, tpot_s and e2e_s")
        return self

    @property
    def slo(self) -> Slo:
        """The objective as the simulator counts it."""
        if self.deadline_s is not None:
            return Slo(e2e_s=self.deadline_s, attainment=self.attainment, share=self.share)
        return Slo(
            ttft_s=self.ttft_s, tpot_s=self.tpot_s, e2e_s=self.e2e_s,
            attainment=self.attainment, share=self.share,
        )  # fmt: skip


class DemandOverTime(Section):
    """Requests over days: ``trace``, ``rates`` by window, or ``profile`` with ``rate_rps``."""

    trace: str | None = None
    rates: str | None = None
    """Table of ``t_s`` and ``rate_rps``, such as ServeGen's client rates."""
    group: str | None = None
    """Which model's rates, where the table has several."""
    lengths: str | None = None
    """Table of lengths by client in ServeGen's form; those of ``profile`` if not given."""
    profile: str = "chat"
    rate_rps: float | None = Field(default=None, gt=0, le=1e6)
    rate_scale: float = Field(default=1.0, gt=0, le=1e6)
    arrivals: Arrivals = "weekly"
    days: float = Field(default=14.0, gt=0, le=400)
    """Of generated demand; of a file, at most so many are used."""

    @model_validator(mode="after")
    def _check(self) -> "DemandOverTime":
        given = [n for n in ("trace", "rates", "rate_rps") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError("give one of trace, rates, or rate_rps (with profile)")
        return self


class Forecasting(Section):
    """How demand is foreseen. Forecasts rest on the past alone."""

    model: ForecastName = "auto"
    """``auto``: the one with least error on the history, rolled forward."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Probability with which demand stays below what is planned for."""
    step_s: float = Field(default=600.0, ge=60, le=3600)
    history_days: float = Field(default=7.0, gt=0, le=400)
    """Days at the start of the demand that come before what is simulated."""


class Spot(Section):
    """Own instances that serve others while they are not needed."""

    instances: int = Field(ge=1)
    """Of each model in each region."""
    startup_s: float = Field(default=65.0, ge=0, le=86_400)
    """Until one is back."""
    usd_share: float = Field(default=0.3, ge=0, le=1)
    """What it earns meanwhile, as a share of its price."""


class ScaleSpec(Section):
    """A question about instances over time."""

    models: tuple[ScaledModel, ...] = Field(min_length=1, max_length=100)
    regions: tuple[Region, ...] = Field(default=(Region(name="world"),), min_length=1)
    tiers: dict[str, Tier] = Field(min_length=1, max_length=100)
    """In order of urgency."""
    demand: DemandOverTime
    forecast: Forecasting = Forecasting()
    objective: Literal["cost"] = "cost"
    local_share: float = Field(default=0.8, ge=0, le=1)
    """Share of a region's demand to be served there."""
    regions_latency_s: float = Field(default=0.05, ge=0, le=10)
    """Added to a request that goes to another region."""
    least: int = Field(default=1, ge=1)
    """Instances of each model in each region at the least."""
    most: int = Field(default=64, ge=1, le=4096)
    """The same at the most."""
    period_s: float = Field(default=60.0, ge=5, le=3600)
    """Between two decisions."""
    spot: Spot | None = None

    @model_validator(mode="after")
    def _check(self) -> "ScaleSpec":
        for name, parts in (
            ("tiers", list(self.tiers.values())),
            ("regions", list(self.regions)),
            ("models", list(self.models)),
        ):
            total = sum(part.share for part in parts)
            if abs(total - 1) > 1e-6:
                raise ValueError(f"the shares of the {name} add up to {total:g}, not to 1")
        if all(tier.deadline_s is not None for tier in self.tiers.values()):
            raise ValueError("tiers: all are deferrable; at least one must be interactive")
        names = [region.name for region in self.regions]
        if len(set(names)) < len(names):
            raise ValueError("two regions have the same name; names must differ")
        if self.least > self.most:
            raise ValueError(f"least ({self.least}) exceeds most ({self.most})")
        return self

    @property
    def slo(self) -> SloClasses:
        """Objectives by tier."""
        return SloClasses(classes={name: tier.slo for name, tier in self.tiers.items()})

    def usd_per_instance_hour(self, model: int, region: int) -> float:
        """Price of one instance."""
        served, place = self.models[model], self.regions[region]
        usd = place.usd_per_gpu_hour
        return served.gpus * (load_gpu(served.gpu).usd_per_hour if usd is None else usd)


def read_scale_spec(path: str | Path) -> ScaleSpec:
    """Return the spec in a YAML or JSON file; paths in it are relative to the file.

    Raises:
        InputError: one line for each problem, with the field and a remedy.
    """
    values: dict[str, Any] = dict(load_document(path))
    folder = Path(path).parent
    demand = values.get("demand")
    if isinstance(demand, dict):
        files = {
            key: absolute_path(demand[key], folder)
            for key in ("trace", "rates", "lengths")
            if isinstance(demand.get(key), str) and demand[key]
        }
        values["demand"] = {**demand, **files}
    return validate(ScaleSpec, values, str(path))
