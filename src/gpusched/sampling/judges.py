"""Judges of answers, and the table of scores that a cascade is planned from.

A score lies between 0 and 100; None where the judge could not tell.
"""

import asyncio
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any, Protocol

from gpusched.errors import InputError
from gpusched.sampling.answers import AnswerFormat
from gpusched.sampling.endpoint import EndpointError, Model, Sample
from gpusched.sampling.probe import Probe


class Judge(Protocol):
    """Whatever scores an answer."""

    @property
    def options(self) -> dict[str, Any]:
        """What the model must be asked for along with its answer."""
        ...

    async def score(self, request: str, answer: Sample, model: Model) -> float | None:
        """Return the score of a model's answer to a request."""
        ...


@dataclass(frozen=True, slots=True)
class ByProbe:
    """A model that is asked whether the answer is good: 100 times its probability of yes."""

    probe: Probe

    @property
    def options(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    async def score(self, request: str, answer: Sample, model: Model) -> float | None:
        """Return the score."""
        found = await self.probe.ask(request, answer.text)
        return None if found.value is None else 100.0 * found.value


@dataclass(frozen=True, slots=True)
class ByLogProbability:
    """The model's own certainty: 100 times the geometric mean of its tokens' probabilities."""

    @property
    def options(self) -> dict[str, Any]:
        """The tokens' log-probabilities."""
        return {"logprobs": True}

    async def score(self, request: str, answer: Sample, model: Model) -> float | None:
        """Return the score."""
        return None if answer.mean_logprob is None else 100.0 * exp(answer.mean_logprob)


@dataclass(frozen=True, slots=True)
class ByAgreement:
    """Self-consistency: per cent of ``samples`` further answers of the same model that agree."""

    samples: int = 4
    answer: AnswerFormat = field(default_factory=AnswerFormat)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples: must be at least 1, got {self.samples}")

    @property
    def options(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    async def score(self, request: str, answer: Sample, model: Model) -> float | None:
        """Return the score; samples that fail or hold no answer do not count."""
        own = self.answer.extract(answer.message)
        if own is None:
            return 0.0
        asked = [model.complete(_chat(request)) for _ in range(self.samples)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        others = [self.answer.extract(one.message) for one in found if isinstance(one, Sample)]
        votes = [other for other in others if other is not None]
        return 100.0 * sum(vote == own for vote in votes) / len(votes) if votes else None


@dataclass(frozen=True, slots=True)
class ByReward:
    """A reward model behind an address: ``{request, answer}`` is posted, ``{score}`` comes back."""

    url: str
    scale: Callable[[float], float] = float
    """From the reward to a score of 0 to 100."""
    timeout_s: float = 60.0

    @property
    def options(self) -> dict[str, Any]:
        """Nothing more."""
        return {}

    async def score(self, request: str, answer: Sample, model: Model) -> float | None:
        """Return the score; None if the address does not give one."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=self.timeout_s)
        body = {"request": request, "answer": answer.text}
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.post(self.url, json=body) as response,
            ):
                if response.status != 200:
                    return None
                return self.scale(float((await response.json(content_type=None))["score"]))
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError, ValueError):
            return None


async def score_models(
    requests: Sequence[str], models: Sequence[Model], judge: Judge, *, at_once: int = 16
) -> list[list[float | None]]:
    """Return the score of every model's answer to every request, a row a request.

    A model that fails leaves None, and the others go on.

    Raises:
        InputError: no requests or no models.
    """
    if not requests or not models:
        raise InputError("score_models: give at least one request and one model")
    gate = asyncio.Semaphore(at_once)

    async def one(request: str, model: Model) -> float | None:
        async with gate:
            try:
                answer = await model.complete(_chat(request), **judge.options)
                return await judge.score(request, answer, model)
            except EndpointError:
                return None

    cells = [one(request, model) for request in requests for model in models]
    found = await asyncio.gather(*cells)
    width = len(models)
    return [list(found[i : i + width]) for i in range(0, len(found), width)]


def write_scores(
    path: str | Path, names: Sequence[str], scores: Sequence[Sequence[float | None]]
) -> int:
    """Write the rows in which every model has a score as a table that a cascade's spec names, the
    columns under the models' names in the catalog; return how many rows were left out.

    Raises:
        InputError: no row is whole, names do not match, or the file cannot be written.
    """
    whole = [row for row in scores if all(value is not None for value in row)]
    if not whole or len(names) != len(scores[0]):
        raise InputError(
            f"scores: {len(whole)} of {len(scores)} rows are whole and there are {len(names)} names; "
            "give a name for each column and at least one row without gaps"
        )
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows(
                [[f"{value:.2f}" for value in row if value is not None] for row in whole]
            )
    except OSError as error:
        raise InputError(f"{path}: cannot write the scores ({error.strerror})") from None
    return len(scores) - len(whole)


def _chat(request: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": request}]
