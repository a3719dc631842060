"""Adaptive majority voting: sample a prompt until the votes suffice (arXiv 2509.21091).

As many samples are under way as the rule still needs if all vote for the leader, so that nothing is
wasted and little time is lost. Answers count in the order of launch: those that come first are the
short ones, and length goes with the answer.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

from gpusched.errors import InputError
from gpusched.sampling.allocation import Allocation
from gpusched.sampling.answers import AnswerFormat
from gpusched.sampling.ballot import Ballot, Tally
from gpusched.sampling.bayes_factor import bayes_factor
from gpusched.sampling.endpoint import EndpointError, Messages, Model, Sample
from gpusched.sampling.stopping import BayesFactor, StoppingRule, decided, futility, lookahead

StopReason = Literal["confident", "decided", "budget", "futile", "deadline", "endpoints failed"]

FAILURES_IN_A_ROW = 3
"""After which a model is asked no more."""
PAUSE_S = 0.1
"""Before a model that failed is asked again; doubles with each failure."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one vote may take."""

    samples: int = 32
    """Completions at most, those without an answer included."""
    parallel: int = 32
    """Under way at once, at most."""
    eagerness: float = 1.0
    """Samples under way as a multiple of those needed for certain; above 1 trades waste for time."""
    deadline_s: float | None = None
    """Decide by then, with the votes there are."""
    futile_below: float = 0.0
    """Stop once the chance to get there within ``samples`` is below; 0 never asks."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("samples", self.samples, 1), ("parallel", self.parallel, 1),
            ("eagerness", self.eagerness, 1.0), ("futile_below", self.futile_below, 0.0),
        ):  # fmt: skip
            if not value >= least:
                raise InputError(f"{name}: must be at least {least}, got {value}")
        if self.futile_below >= 1:
            raise InputError(f"futile_below: must be below 1, got {self.futile_below}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise InputError(f"deadline_s: must be positive, got {self.deadline_s}")


@dataclass(slots=True)
class Vote:
    """The answer and what it took."""

    answer: str | None
    """None if no sample had one: ``sample`` is then the first completion."""
    sample: Sample
    """The first completion launched that gives the answer."""
    stop_reason: StopReason
    votes: dict[str, int]
    samples: int
    """Completions received, whether or not they had an answer or were counted."""
    unparsed: int
    """Of those judged: no answer found."""
    cancelled: int
    """Launched and stopped under way."""
    failures: int
    waves: int
    """Times at which samples were launched."""
    prompt_tokens: int
    completion_tokens: int
    bayes_factor: float
    """Of the leader under the paper's prior, whatever the rule."""
    seconds: float
    by_model: dict[str, int] = field(default_factory=dict)
    """Completions received from each model."""

    @property
    def leader_share(self) -> float:
        """Share of the votes that the answer has."""
        total = sum(self.votes.values())
        return self.votes[self.answer] / total if self.answer is not None and total else 0.0

    def chat_completion(self) -> dict[str, Any]:
        """Return an OpenAI chat completion: usage of all samples, details under ``gpusched``."""
        factor = min(self.bayes_factor, 1e308)
        return {
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": dict(self.sample.message),
                    "finish_reason": self.sample.finish_reason or "stop",
                }
            ],
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
            "gpusched": {
                "strategy": "best-of-n", "answer": self.answer, "samples": self.samples,
                "unparsed": self.unparsed, "cancelled": self.cancelled, "failures": self.failures,
                "tokens": self.prompt_tokens + self.completion_tokens,
                "stop_reason": self.stop_reason, "leader_share": self.leader_share,
                "bayes_factor": factor, "votes": self.votes, "by_model": self.by_model,
            },
        }  # fmt: skip


async def vote(
    models: Sequence[Model],
    messages: Messages,
    *,
    weights: Sequence[float] | None = None,
    rule: StoppingRule | None = None,
    answer: AnswerFormat | None = None,
    limits: Limits | None = None,
    eager: bool = False,
    seed: int | None = None,
    **options: Any,
) -> Vote:
    """Sample until ``rule`` is satisfied and return the leading answer.

    ``weights`` are the models' shares of the samples, equal unless given. ``eager`` counts answers
    as they arrive, sooner and biased towards short ones. With ``seed``, sample i is asked for with
    ``seed + i``. ``options`` go into each request. Ties go to the answer that got there first.

    A failed request is asked again, of another model where there is one; a model that fails three
    times in a row is left out. Votes received count even if everything fails later.

    Raises:
        InputError: no models, or wrong weights.
        EndpointError: no completion at all.
    """
    if not models:
        raise InputError("models: at least one is needed")
    shares = weights if weights is not None else [1.0] * len(models)
    if len(shares) != len(models):
        raise InputError(
            f"weights: expected one for each of {len(models)} models, got {len(shares)}"
        )
    run = _Run(
        models, messages, Allocation(shares, seed=seed), rule or BayesFactor(),
        answer or AnswerFormat(), limits or Limits(), eager, seed, options,
    )  # fmt: skip
    return await run.decide()


@dataclass(slots=True)
class _Launch:
    number: int
    model: int
    task: "asyncio.Task[Sample]"


class _Run:
    """One vote under way."""

    def __init__(
        self, models: Sequence[Model], messages: Messages, allocation: Allocation,
        rule: StoppingRule, form: AnswerFormat, limits: Limits, eager: bool, seed: int | None,
        options: dict[str, Any],
    ) -> None:  # fmt: skip
        self.models, self.messages, self.allocation = models, messages, allocation
        self.rule, self.form, self.limits, self.eager = rule, form, limits, eager
        self.seed, self.options = seed, options
        self.ballot: Ballot[str] = Ballot()
        self.open: list[_Launch] = []
        """Launched and not yet judged, in the order of launch."""
        self.launched = self.judged = self.unparsed = self.failures = self.waves = 0
        self.received: dict[int, Sample] = {}
        self.answers: dict[str, int] = {}
        """The first launch that gave each answer."""
        self.failed_in_a_row = [0] * len(models)
        self.by_model = [0] * len(models)
        self.last_error: EndpointError | None = None
        self.alive = True

    async def decide(self) -> Vote:
        """Launch, wait and count until there is a reason to stop."""
        began = monotonic()
        deadline = None if self.limits.deadline_s is None else began + self.limits.deadline_s
        try:
            while (reason := self._reason()) is None:
                self._launch()
                if not self.open:
                    reason = "endpoints failed" if not self.alive else "budget"
                    break
                wait = None if deadline is None else max(deadline - monotonic(), 0.0)
                waiting = [launch.task for launch in self.open if not launch.task.done()]
                if waiting:
                    await asyncio.wait(waiting, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                late = deadline is not None and monotonic() >= deadline
                self._judge(everything=self.eager or late)
                if late:
                    reason = self._reason() or "deadline"
                    break
        finally:
            cancelled = await self._cancel()
        return self._result(reason, cancelled, monotonic() - began)

    def _reason(self) -> StopReason | None:
        tally, left = self.ballot.tally, self.limits.samples - self.judged
        if self.rule.stops(tally):
            return "confident"
        if left <= 0:
            return "budget"
        if decided(tally, left):
            return "decided"
        if (
            self.limits.futile_below > 0
            and tally.counts
            and futility(self.rule, tally, left) < self.limits.futile_below
        ):
            return "futile"
        return None

    def _needed(self, tally: Tally) -> int:
        left = self.limits.samples - self.judged
        sure = lookahead(self.rule, tally, min(left, self.limits.parallel))
        return min(int(sure * self.limits.eagerness), left, self.limits.parallel)

    def _launch(self) -> None:
        room = self._needed(self.ballot.tally) - len(self.open) if self.alive else 0
        for _ in range(room):
            self.open.append(self._ask(self.launched, self.allocation.next()))
            self.launched += 1
        self.waves += room > 0

    def _ask(self, number: int, model: int) -> _Launch:
        failed = self.failed_in_a_row[model]
        delay_s = PAUSE_S * 2 ** (failed - 1) if failed else 0.0
        return _Launch(number, model, asyncio.ensure_future(self._complete(number, model, delay_s)))

    async def _complete(self, number: int, model: int, delay_s: float) -> Sample:
        if delay_s:
            await asyncio.sleep(delay_s)
        options = dict(self.options)
        if self.seed is not None:
            options["seed"] = self.seed + number
        return await self.models[model].complete(self.messages, **options)

    def _judge(self, *, everything: bool) -> None:
        """Count answers: up to the first launch still under way, or all that have arrived."""
        self._retry_failed()
        waiting: list[_Launch] = []
        ready = [launch for launch in self.open if launch.task.done()]
        self._receive(ready)
        for at, launch in enumerate(self.open):
            if not launch.task.done():
                waiting.append(launch)
                if not everything:
                    waiting.extend(self.open[at + 1 :])
                    break
            elif launch.number in self.received and self._reason() is None:
                self._count(launch)
        self.open = waiting

    def _receive(self, ready: list[_Launch]) -> None:
        for launch in ready:
            if launch.number not in self.received:
                self.received[launch.number] = launch.task.result()
                self.by_model[launch.model] += 1

    def _count(self, launch: _Launch) -> None:
        self.judged += 1
        answer = self.form.extract(self.received[launch.number].message)
        if answer is None:
            self.unparsed += 1
            self.ballot.add_blank()
            return
        self.answers.setdefault(answer, launch.number)
        self.ballot.add(answer)

    def _retry_failed(self) -> None:
        """Ask anew for what failed, in the failed one's place."""
        kept: list[_Launch] = []
        for launch in self.open:
            if not launch.task.done():
                kept.append(launch)
                continue
            error = launch.task.exception()
            if error is None:
                self.failed_in_a_row[launch.model] = 0
                kept.append(launch)
            elif isinstance(error, EndpointError):
                self._note_failure(launch.model, error)
                if self.alive:
                    kept.append(self._ask(launch.number, self.allocation.next()))
            else:
                raise error
        self.open = kept

    def _note_failure(self, model: int, error: EndpointError) -> None:
        self.failures += 1
        self.last_error = error
        self.failed_in_a_row[model] += 1
        if self.failed_in_a_row[model] == FAILURES_IN_A_ROW:
            self.alive = self.allocation.drop(model)

    async def _cancel(self) -> int:
        """Stop what is under way and keep what has arrived meanwhile for the bill."""
        running = [launch for launch in self.open if not launch.task.done()]
        for launch in running:
            launch.task.cancel()
        await asyncio.gather(*(launch.task for launch in self.open), return_exceptions=True)
        arrived = [
            launch
            for launch in self.open
            if not launch.task.cancelled() and launch.task.exception() is None
        ]
        self._receive(arrived)
        return sum(launch.task.cancelled() for launch in self.open)

    def _result(self, reason: StopReason, cancelled: int, seconds: float) -> Vote:
        if not self.received:
            if self.last_error is not None:
                raise self.last_error
            raise EndpointError(f"no completion within {self.limits.deadline_s:g} s")
        leader = self.ballot.leader
        first = self.answers[leader] if leader is not None else min(self.received)
        by_model: dict[str, int] = {}
        for model, count in zip(self.models, self.by_model, strict=True):
            by_model[model.name] = by_model.get(model.name, 0) + count
        return Vote(
            answer=leader,
            sample=self.received[first],
            stop_reason=reason,
            votes=dict(self.ballot.votes),
            samples=len(self.received),
            unparsed=self.unparsed,
            cancelled=cancelled,
            failures=self.failures,
            waves=self.waves,
            prompt_tokens=sum(sample.prompt_tokens for sample in self.received.values()),
            completion_tokens=sum(sample.completion_tokens for sample in self.received.values()),
            bayes_factor=bayes_factor(self.ballot.tally.counts),
            seconds=seconds,
            by_model=by_model,
        )
