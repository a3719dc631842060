"""Controlled decoding over any OpenAI-compatible completions endpoint that continues a prefix."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.sampling.controlled.choice import checked_values, choose
from gpusched.sampling.controlled.strategy import ControlledDecoding
from gpusched.sampling.endpoint import EndpointError

TextValues = Callable[[str, Sequence[str], Sequence[bool]], ArrayLike | Awaitable[ArrayLike]]
"""(prompt, answers so far, which of them are finished) -> values of shape (answers, objectives)."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sampled block."""

    text: str
    finished: bool
    """It ended the answer rather than ran into its limit."""


@dataclass(slots=True)
class CompletionsEndpoint:
    """A server's ``/v1/completions``; counts what it is asked for."""

    url: str
    """Such as ``http://127.0.0.1:8000/v1``."""
    model: str
    api_key: str | None = None
    timeout_s: float = 120.0
    many: bool = True
    """Ask for several samples in one call; switched off once the server returns fewer."""
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    async def continuations(
        self, prefix: str, count: int, max_tokens: int, *, temperature: float, seed: int
    ) -> list[Continuation]:
        """Sample ``count`` continuations of a prefix: in one call, or in parallel single ones.

        Raises:
            EndpointError: the server cannot be reached, refuses, or answers something else.
        """
        found: list[Continuation] = []
        if self.many and count > 1:
            found = await self._sample(prefix, count, max_tokens, temperature, seed)
            self.many = len(found) >= count
        rest = range(len(found), count)
        singles = await asyncio.gather(
            *(self._sample(prefix, 1, max_tokens, temperature, seed + i) for i in rest)
        )
        return [*found, *(one for answer in singles for one in answer)][:count]

    async def _sample(
        self, prefix: str, count: int, max_tokens: int, temperature: float, seed: int
    ) -> list[Continuation]:
        body = {
            "model": self.model, "prompt": prefix, "n": count, "max_tokens": max_tokens,
            "temperature": temperature, "seed": seed,
        }  # fmt: skip
        try:
            answer = await asyncio.to_thread(self._post, body)
        except HTTPError as error:
            words = error.read(500).decode("utf-8", "replace").strip()
            if count > 1 and error.code in (400, 422):
                return []  # a server that knows no n; ask it singly
            raise EndpointError(f"{self.url}: the server answered {error.code}: {words}") from None
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise EndpointError(f"{self.url}: no answer from the server ({reason})") from None
        except ValueError:
            raise EndpointError(f"{self.url}: the server's answer is not JSON") from None
        try:
            found = [
                Continuation(str(c["text"]), c.get("finish_reason") != "length")
                for c in answer["choices"]
            ]
        except (KeyError, TypeError, AttributeError):
            raise EndpointError(f"{self.url}: the answer has no choices with text") from None
        usage = answer.get("usage") or {}
        self.requests += 1
        self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
        self.completion_tokens += int(usage.get("completion_tokens") or 0)
        return found

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = Request(f"{self.url.rstrip('/')}/completions", json.dumps(body).encode(), headers)
        with urlopen(request, timeout=self.timeout_s) as answer:
            return json.loads(answer.read())


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One choice along the way."""

    text: str
    values: NDArray[np.float64]
    """Of the block kept, shape (objectives,)."""
    weights: NDArray[np.float64]
    gap: float


@dataclass(frozen=True, slots=True, eq=False)
class ControlledAnswer:
    """A decoded answer and how it came about."""

    text: str
    finished: bool
    """False where it ran into ``max_tokens``."""
    blocks: list[Block] = field(default_factory=list)
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Sampled, kept or not, as far as the server counts them."""


async def controlled_completion(
    endpoint: CompletionsEndpoint,
    prompt: str,
    values: TextValues,
    settings: ControlledDecoding,
    *,
    on_block: Callable[[Block], None] | None = None,
) -> ControlledAnswer:
    """Decode an answer: sample blocks, keep one, go on from it.

    ``on_block`` hears of each block kept, as streaming needs.

    Raises:
        EndpointError: the server fails.
        InputError: values have a wrong shape or are not finite.
    """
    before = (endpoint.requests, endpoint.prompt_tokens, endpoint.completion_tokens)
    rng = np.random.default_rng(settings.seed)
    text, finished, left = "", False, settings.max_tokens
    blocks: list[Block] = []
    weights = None
    while left > 0 and not finished:
        size = min(settings.block_tokens, left)
        candidates = await endpoint.continuations(
            prompt + text, settings.candidates, size, temperature=settings.temperature,
            seed=int(rng.integers(2**31)),
        )  # fmt: skip
        if not candidates:
            raise EndpointError(f"{endpoint.url}: the server returned no candidates")
        unique = list(dict.fromkeys(candidates))
        scored = values(prompt, [text + c.text for c in unique], [c.finished for c in unique])
        scored = await scored if inspect.isawaitable(scored) else scored
        v = checked_values(scored, len(settings.objectives), len(unique))
        counted = v[[unique.index(c) for c in candidates]]
        choice = choose(counted, settings, start=weights, rng=rng)
        kept = candidates[int(choice.index)]
        weights = choice.weights
        block = Block(kept.text, counted[int(choice.index)], weights, float(choice.gap))
        blocks.append(block)
        if on_block is not None:
            on_block(block)
        text, finished, left = text + kept.text, kept.finished, left - size
    spent = (endpoint.requests, endpoint.prompt_tokens, endpoint.completion_tokens)
    return ControlledAnswer(
        text, finished, blocks, *(a - b for a, b in zip(spent, before, strict=True))
    )
