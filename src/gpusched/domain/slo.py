"""Service-level objectives: bounds on a request's latency and the share that must meet them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from gpusched.domain.document import Section

Floats = NDArray[np.float64]
BOUNDS = ("ttft", "tpot", "e2e")


class Slo(Section):
    """Bounds of one class of requests. An absent bound always holds."""

    ttft_s: float | None = Field(default=None, gt=0, le=1e6)
    tpot_s: float | None = Field(default=None, gt=0, le=1e6)
    e2e_s: float | None = Field(default=None, gt=0, le=1e7)
    attainment: float = Field(default=0.99, gt=0, le=1)
    """Share of the class's requests that must meet every bound."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Share of requests in this class, where the trace does not say."""

    @model_validator(mode="before")
    @classmethod
    def _read_milliseconds(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for bound in BOUNDS:
            if (key := f"{bound}_ms") in values:
                if f"{bound}_s" in values:
                    raise ValueError(f"{bound}_ms and {bound}_s are both given; keep one")
                value = values.pop(key)
                number = isinstance(value, int | float) and not isinstance(value, bool)
                values[f"{bound}_s"] = value / 1e3 if number else value
        return values

    @model_validator(mode="after")
    def _check_consistent(self) -> "Slo":
        if self.ttft_s is None and self.tpot_s is None and self.e2e_s is None:
            raise ValueError("give at least one bound: ttft_ms, tpot_ms or e2e_ms")
        if self.e2e_s is not None:
            for name, bound in (("ttft", self.ttft_s), ("tpot", self.tpot_s)):
                if bound is not None and bound > self.e2e_s:
                    raise ValueError(
                        f"{name} bound of {bound * 1e3:g} ms is longer than the e2e bound of "
                        f"{self.e2e_s * 1e3:g} ms; no request could use it"
                    )
        return self

    def met(self, ttft_s: Floats, tpot_s: Floats, e2e_s: Floats) -> NDArray[np.bool_]:
        """Tell which requests meet every bound. A nan (a rejected request) never does."""
        ok = ~np.isnan(ttft_s)
        for bound, values in ((self.ttft_s, ttft_s), (self.tpot_s, tpot_s), (self.e2e_s, e2e_s)):
            if bound is not None:
                ok &= values <= bound * (1 + 1e-12)
        return ok

    def __str__(self) -> str:
        bounds = ((n.upper(), getattr(self, f"{n}_s")) for n in BOUNDS)
        text = ", ".join(f"{name} ≤ {show_s(value)}" for name, value in bounds if value is not None)
        return f"{text} for {self.attainment:.4g} of requests"


class SloClasses(Section):
    """The objectives of each class of requests by name; ``default`` where there is only one."""

    classes: dict[str, Slo] = Field(min_length=1, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _read_one_class(cls, values: Any) -> Any:
        if not isinstance(values, dict) or set(values) == {"classes"}:
            return values
        if any(isinstance(value, dict) for value in values.values()):
            return {"classes": values}
        return {"classes": {"default": values}}

    @model_validator(mode="after")
    def _check_shares(self) -> "SloClasses":
        shares = [slo.share for slo in self.classes.values() if slo.share is not None]
        if shares and len(shares) < len(self.classes):
            raise ValueError("give every class a share, or none")
        if shares and abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares of the classes add up to {sum(shares):g}, not to 1")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes; a request's ``class_id`` counts them."""
        return tuple(self.classes)

    @property
    def only(self) -> Slo | None:
        """The objective of all requests, where there is a single class."""
        return next(iter(self.classes.values())) if len(self.classes) == 1 else None


def show_s(seconds: float) -> str:
    """Return a duration as people read it."""
    return f"{seconds * 1e3:.4g} ms" if seconds < 1 else f"{seconds:.4g} s"
