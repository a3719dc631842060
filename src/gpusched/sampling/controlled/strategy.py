"""Settings of controlled decoding, as a request gives them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpusched.domain.document import Section

Rule = Literal["robust", "robust-sample", "fixed", "maximin"]
Share = Annotated[float, Field(ge=0)]


class ControlledDecoding(Section):
    """``{"strategy": "controlled-decoding", "objectives": ["helpful", "harmless"]}``."""

    strategy: Literal["controlled-decoding"] = "controlled-decoding"
    objectives: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]
    """Names of the value functions."""
    rule: Rule = "robust"
    """Best candidate under the worst-case weights, a draw from the game's policy, best under fixed
    weights, or the candidate whose worst value is best."""
    weights: dict[str, Share] | None = None
    """Of the objectives under ``fixed``; equal ones by default."""
    calibration: dict[str, tuple[float, Annotated[float, Field(gt=0)]]] | None = None
    """Mean and standard deviation of each objective over answers of the plain model; values are
    standardised by them. Without, they are taken to be standardised already."""
    candidates: Annotated[int, Field(ge=1, le=256)] = 8
    block_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    max_tokens: Annotated[int, Field(ge=1)] = 256
    strength: Annotated[float, Field(gt=0)] = 10.0
    """How far the choice may leave the model's own distribution, for values of unit spread. The
    published default is 1, at which equal weights do better (``gpusched reproduce rmod``)."""
    smoothing: Annotated[float, Field(ge=0)] = 0.0
    """Pull of the worst-case weights towards equal ones, in nats."""
    paper_iterations: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Steps of the published code instead of the exact weights."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _weights_fit(self) -> "ControlledDecoding":
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: each name once")
        if self.weights is not None:
            if self.rule != "fixed":
                raise ValueError("weights: only the rule 'fixed' has weights of its own")
            unknown = sorted(set(self.weights) - set(self.objectives))
            if unknown:
                raise ValueError(f"weights: no objective {unknown[0]!r}")
            if sum(self.weights.values()) <= 0:
                raise ValueError("weights: at least one must be positive")
        if self.calibration is not None and set(self.calibration) != set(self.objectives):
            raise ValueError(
                "calibration: needs a mean and a deviation of each objective, no others"
            )
        if self.paper_iterations is not None and self.smoothing:
            raise ValueError("paper_iterations: not with smoothing")
        return self

    @property
    def fixed_weights(self) -> tuple[float, ...]:
        """Weights of the objectives in their order, adding up to 1."""
        given = self.weights or dict.fromkeys(self.objectives, 1.0)
        total = sum(given.values())
        return tuple(given.get(name, 0.0) / total for name in self.objectives)
