"""Safe mixing around a live model: candidates, probes, lottery, draw (arXiv 2510.09330)."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpusched.errors import InputError
from gpusched.sampling.endpoint import EndpointError, Messages, Model, Sample
from gpusched.sampling.probe import Probe, Score
from gpusched.sampling.safe_mixing import MixingRules, mix

REFUSAL = "I can't help with that."

Reason = Literal["lottery", "certain", "fallback", "no candidates"]


@dataclass(frozen=True, slots=True)
class SafeAnswer:
    """The answer drawn and the lottery it was drawn from."""

    text: str
    chosen: int
    """Position in ``candidates``; 0 is the fallback."""
    reason: Reason
    candidates: tuple[str, ...]
    helpful: tuple[float, ...]
    harmful: tuple[float, ...]
    probabilities: tuple[float, ...]
    helpfulness: float
    """Expected, beyond the fallback's."""
    extra_harm: float
    price: float
    """Helpfulness that a unit more of budget would bring."""
    failures: int
    """Candidates or probes that failed; a candidate not probed is never played."""
    prompt_tokens: int
    completion_tokens: int

    def chat_completion(self) -> dict[str, Any]:
        """Return an OpenAI chat completion: usage of all calls, details under ``gpusched``."""
        return {
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": self.text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "total_tokens": self.prompt_tokens + self.completion_tokens,
            },
            "gpusched": {
                "strategy": "safe-mixing", "reason": self.reason, "chosen": self.chosen,
                "helpful": self.helpful, "harmful": self.harmful,
                "probabilities": self.probabilities, "helpfulness": self.helpfulness,
                "extra_harm": self.extra_harm, "price": self.price, "failures": self.failures,
            },
        }  # fmt: skip


async def safe_answer(
    model: Model,
    messages: Messages,
    *,
    helpful: Probe,
    harmful: Probe,
    candidates: int = 8,
    rules: MixingRules | None = None,
    fallback: str = REFUSAL,
    seed: int | None = None,
    **options: Any,
) -> SafeAnswer:
    """Sample candidates, probe each and the fallback, and draw one by the best lottery.

    Equal candidates are probed once. One whose probes fail is not played; where the fallback's
    fail it counts as harmless, which is on the safe side. ``seed`` fixes the draw and seeds sample
    i with ``seed + i``; ``options`` go into the requests for candidates.

    Raises:
        InputError: ``candidates`` below 1, no text to answer, or an empty fallback.
    """
    if candidates < 1:
        raise InputError(f"candidates: must be at least 1, got {candidates}")
    if not fallback.strip():
        raise InputError("fallback: must not be empty")
    request = _request(messages)
    replies = await asyncio.gather(
        *(
            model.complete(messages, **options, **({} if seed is None else {"seed": seed + i}))
            for i in range(candidates)
        ),
        return_exceptions=True,
    )
    samples = [reply for reply in replies if isinstance(reply, Sample)]
    for reply in replies:
        if isinstance(reply, BaseException) and not isinstance(reply, EndpointError):
            raise reply
    texts = [fallback, *dict.fromkeys(s.text for s in samples if s.text and s.text != fallback)]
    if len(texts) == 1:
        return _of(texts, [Score(None)], [Score(None)], samples, rules, seed, candidates)
    probes = await asyncio.gather(
        *(probe.ask(request, text) for probe in (helpful, harmful) for text in texts)
    )
    return _of(texts, probes[: len(texts)], probes[len(texts) :], samples, rules, seed, candidates)


def _of(
    texts: list[str], helpful: list[Score], harmful: list[Score], samples: list[Sample],
    rules: MixingRules | None, seed: int | None, candidates: int,
) -> SafeAnswer:  # fmt: skip
    h = np.array([0.0 if score.value is None else score.value for score in helpful])
    r = np.array([1.0 if score.value is None else score.value for score in harmful])
    if harmful[0].value is None:
        r[0] = 0.0
    known = [
        i for i in range(len(texts))
        if i == 0 or (helpful[i].value is not None and harmful[i].value is not None)
    ]  # fmt: skip
    lottery = mix(h[known], r[known], rules)
    probabilities = np.zeros(len(texts))
    probabilities[known] = lottery.probabilities(len(known))[0]
    chosen = known[int(lottery.draw(np.random.default_rng(seed))[0])]
    if len(texts) == 1:
        reason: Reason = "no candidates"
    elif probabilities[0] == 1.0:
        reason = "fallback"
    else:
        reason = "certain" if probabilities.max() == 1.0 else "lottery"
    paid: list[Sample | Score] = [*samples, *helpful, *harmful]
    asked = [*helpful, *harmful] if len(texts) > 1 else []
    return SafeAnswer(
        texts[chosen], chosen, reason, tuple(texts), tuple(h.tolist()), tuple(r.tolist()),
        tuple(probabilities.tolist()), float(lottery.helpfulness[0]),
        float(lottery.extra_harm[0]), float(lottery.price[0]),
        candidates - len(samples) + sum(score.value is None for score in asked),
        sum(used.prompt_tokens for used in paid), sum(used.completion_tokens for used in paid),
    )  # fmt: skip


def _request(messages: Messages) -> str:
    """The last thing the user said."""
    for message in reversed(messages):
        content = message.get("content")
        if message.get("role") == "user" and isinstance(content, str) and content:
            return content
    raise InputError("messages: no text of a user to answer")
