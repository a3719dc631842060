"""A cascade: smaller models answer first, and a judge passes weak answers on to the next."""

from typing import Literal

from pydantic import Field

from gpusched.domain.document import Section
from gpusched.domain.names import ModelName

Latency = Literal["whole-wait", "mean", "slowest"]
Dtype = Literal["bf16", "fp8", "int8", "mxfp4", "nvfp4", "int4"]


class SmallerModel(Section):
    """A model in front of the spec's own."""

    model: ModelName
    weights_dtype: Dtype | None = None
    """The model's own if not given."""


class Cascade(Section):
    """Question about a cascade: which models, how good the answers must be."""

    before: tuple[SmallerModel, ...] = Field(min_length=1, max_length=8)
    """Smaller models in the order they are asked; the spec's ``model`` is the last."""
    scores: str
    """Table of judge scores, a row a sampled request and a column a model, small to large."""
    quality: float
    """Least mean score of the accepted answers."""
    latency: Latency = "whole-wait"
    """What is made small: a quantile of a user's wait over all models asked, its mean, or the
    quantile of the slowest model alone (the published objective)."""
    quantile: float = Field(default=0.95, gt=0, lt=1)
    """Of the wait or of a model's latency."""
    judge_s: float = Field(default=0.0, ge=0, le=1e4)
    """Time to judge an answer."""
    thresholds_per_stage: int = Field(default=16, ge=2, le=200)
