"""How a request asks for more than one sample: its field ``gpusched``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gpusched.domain.document import Section, validate
from gpusched.errors import InputError, unknown_name
from gpusched.sampling.answers import AnswerFormat
from gpusched.sampling.bayes_factor import ALPHA, Prior
from gpusched.sampling.endpoint import Model
from gpusched.sampling.probe import HARMFUL, HELPFUL, Probe
from gpusched.sampling.safe_answer import REFUSAL
from gpusched.sampling.safe_mixing import MixingRules
from gpusched.sampling.stopping import (
    Agreement,
    BayesFactor,
    Beta,
    Confidence,
    Dirichlet,
    Fixed,
    StoppingRule,
    Window,
)
from gpusched.sampling.vote import Limits

FIELD = "gpusched"
"""Key of a chat completion request."""


class BestOfN(Section):
    """Vote over samples until the leader is sure: ``strategy: best-of-n``."""

    strategy: Literal["best-of-n"] = "best-of-n"
    rule: Literal["bayes-factor", "beta", "dirichlet", "window", "agreement", "fixed"] = (
        "bayes-factor"
    )
    bayes_factor: Annotated[float, Field(gt=0)] | None = None
    """Threshold; 100 unless ``confidence`` is given."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Instead, the posterior probability that the leader is the mode; also of other rules."""
    prior: Prior = "paper"
    alpha: Annotated[float, Field(gt=0)] = ALPHA
    window: Annotated[int, Field(ge=1)] = 5
    max_samples: Annotated[int, Field(ge=1, le=1000)] = 32
    parallel: Annotated[int, Field(ge=1, le=1000)] = 32
    eager: bool = False
    """Count answers as they arrive: sooner, and biased towards short ones."""
    eagerness: Annotated[float, Field(ge=1)] = 1.0
    deadline_s: Annotated[float, Field(gt=0)] | None = None
    futile_below: Annotated[float, Field(ge=0, lt=1)] = 0.0
    answer: AnswerFormat = AnswerFormat()
    models: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Shares of the samples by model; the request's own model alone if not given."""
    seed: int | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "BestOfN":
        if self.bayes_factor is not None and self.confidence is not None:
            raise ValueError("give either bayes_factor or confidence, not both")
        if self.bayes_factor is not None and self.rule != "bayes-factor":
            raise ValueError(f"bayes_factor: does not apply to the rule {self.rule}")
        if self.confidence is not None and self.rule in ("window", "fixed"):
            raise ValueError(f"confidence: does not apply to the rule {self.rule}")
        if self.models is not None and not sum(self.models.values()) > 0:
            raise ValueError("models: at least one share must be positive")
        return self

    def stopping_rule(self) -> StoppingRule:
        """Return the rule."""
        match self.rule:
            case "beta":
                return Beta(self.confidence or 0.95)
            case "dirichlet":
                return Dirichlet(self.confidence or 0.95)
            case "window":
                return Window(self.window)
            case "agreement":
                return Agreement(self.confidence or 0.75)
            case "fixed":
                return Fixed(self.max_samples)
            case _:
                if self.confidence is not None:
                    return Confidence(self.confidence, self.alpha, self.prior)
                return BayesFactor(self.bayes_factor or 100.0, self.alpha, self.prior)

    def limits(self) -> Limits:
        """Return what the vote may take."""
        return Limits(
            self.max_samples, self.parallel, self.eagerness, self.deadline_s, self.futile_below
        )


class SafeMixing(Section):
    """Draw from the most helpful lottery within a risk budget: ``strategy: safe-mixing``."""

    strategy: Literal["safe-mixing"] = "safe-mixing"
    candidates: Annotated[int, Field(ge=1, le=64)] = 8
    budget: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Expected harm beyond the fallback's, probability."""
    max_extra_harm: Annotated[float, Field(ge=0, le=1)] = 0.5
    score_error: Annotated[float, Field(ge=0, le=1)] = 0.02
    min_share: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    fallback: Annotated[str, Field(min_length=1)] = REFUSAL
    helpful_question: str = HELPFUL
    harmful_question: str = HARMFUL
    probe_votes: Annotated[int, Field(ge=0, le=64)] = 0
    """Short answers a probe counts; 0 reads log-probabilities."""
    seed: int | None = None

    @field_validator("helpful_question", "harmful_question")
    @classmethod
    def _has_places(cls, question: str) -> str:
        for part in ("{request}", "{answer}"):
            if part not in question:
                raise ValueError(f"must contain {part}")
        return question

    def rules(self) -> MixingRules:
        """Return what the lottery may do."""
        return MixingRules(self.budget, self.max_extra_harm, self.score_error, self.min_share)

    def probes(self, model: Model) -> tuple[Probe, Probe]:
        """Return the questions whether an answer is helpful and harmful, to ``model``."""
        return (
            Probe(model, self.helpful_question, self.probe_votes),
            Probe(model, self.harmful_question, self.probe_votes),
        )


STRATEGIES: dict[str, type[Section]] = {"best-of-n": BestOfN, "safe-mixing": SafeMixing}


def strategy_of(request: Mapping[str, Any]) -> Section | None:
    """Return the strategy that a chat completion request asks for; None where it asks for none.

    The field looks like ``{"strategy": "best-of-n", "confidence": 0.99}``.

    Raises:
        InputError: an unknown strategy, or wrong settings of it.
    """
    values = request.get(FIELD)
    if values is None:
        return None
    if not isinstance(values, Mapping) or "strategy" not in values:
        known = ", ".join(STRATEGIES)
        raise InputError(f"{FIELD}: expected an object with strategy, one of {known}")
    name = values["strategy"]
    if not isinstance(name, str) or name not in STRATEGIES:
        raise InputError(f"{FIELD}.strategy: {unknown_name('strategy', str(name), STRATEGIES)}")
    return validate(STRATEGIES[name], values, FIELD)
