"""Request classes, and how fast a GPU that prefills in chunks serves them.

A GPU runs at most one prefill at a time, a chunk an iteration, beside its decodes (*mixed*
iterations); without a prefill it decodes only (*solo* iterations). Source: arXiv 2602.02987,
Section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from gpusched.errors import InputError
from gpusched.policies.batching.equilibrium import Batch, EngineTime
from gpusched.timing.compiled import CompiledTiming


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests that are alike: Poisson arrivals, mean lengths, exponential patience."""

    name: str
    rate_rps: float
    """Arrivals a second for each GPU of the cluster."""
    prompt_tokens: float
    output_tokens: float
    abandonment_rps: float = 0.0
    """Rate at which one waiting request gives up: the reciprocal of its mean patience."""

    def __post_init__(self) -> None:
        for field, positive in (
            ("rate_rps", False),
            ("prompt_tokens", True),
            ("output_tokens", True),
            ("abandonment_rps", False),
        ):
            value = getattr(self, field)
            if not (math.isfinite(value) and (value > 0 if positive else value >= 0)):
                raise InputError(
                    f"class {self.name}: {field} must be {'above' if positive else 'at least'} 0, "
                    f"got {value:g}"
                )


@dataclass(frozen=True, slots=True)
class Prices:
    """What a token earns; the unit is the user's."""

    prompt_token: float
    output_token: float

    def __post_init__(self) -> None:
        if not (self.prompt_token >= 0 and self.output_token >= 0):
            raise InputError(
                "prices must be at least 0, got "
                f"{self.prompt_token:g} a prompt token and {self.output_token:g} an output token"
            )

    def of(self, request: RequestClass) -> float:
        """Return what a completed request of mean lengths earns."""
        return self.prompt_token * request.prompt_tokens + self.output_token * request.output_tokens


@dataclass(frozen=True, slots=True)
class ServerModel:
    """One GPU (or one replica): streams it holds, and its iteration times.

    A mixed iteration takes ``mixed_fixed_s + token_s * chunk_tokens``, a solo one ``solo_s``.
    """

    streams: int
    """Requests at once at most; beside a prefill one fewer decode. The paper's B."""
    chunk_tokens: int
    """Prompt tokens of a mixed iteration."""
    mixed_fixed_s: float
    token_s: float
    solo_s: float
    whole_chunks: bool = False
    """Whether a prompt takes a whole number of iterations, as engines do it, instead of the
    paper's ``prompt_tokens / chunk_tokens``."""

    def __post_init__(self) -> None:
        if self.streams < 1 or self.chunk_tokens < 1:
            raise InputError(
                "a server needs at least 1 stream and chunks of at least 1 token, got "
                f"{self.streams} and {self.chunk_tokens}"
            )
        times = (self.mixed_s, self.solo_s)
        if not all(math.isfinite(t) and t > 0 for t in times) or self.token_s < 0:
            raise InputError(
                f"iteration times must be above 0, got {self.mixed_s:g} s mixed and "
                f"{self.solo_s:g} s solo, {self.token_s:g} s a token"
            )

    @property
    def mixed_s(self) -> float:
        """A mixed iteration: the paper's tau."""
        return self.mixed_fixed_s + self.token_s * self.chunk_tokens

    def prefill_s(self, request: RequestClass) -> float:
        """Return the time of a prefill."""
        chunks = request.prompt_tokens / self.chunk_tokens
        return (math.ceil(chunks) if self.whole_chunks else chunks) * self.mixed_s

    def mixed_decode_s(self, request: RequestClass) -> float:
        """Return the time of an answer, all of it beside prefills."""
        return request.output_tokens * self.mixed_s

    def solo_decode_s(self, request: RequestClass) -> float:
        """Return the time of an answer, none of it beside prefills."""
        return request.output_tokens * self.solo_s

    @classmethod
    def of_timing(
        cls,
        timing: CompiledTiming,
        classes: Sequence[RequestClass],
        kv_tokens: float,
        *,
        chunk_tokens: int = 512,
        max_num_seqs: int = 256,
        whole_chunks: bool = True,
    ) -> Self:
        """Return the server that a timing model describes, for a mix of classes.

        Streams are as many as the KV cache holds at mean length, ``prompt + output / 2``, and at
        most ``max_num_seqs``. Iterations are those of a full GPU: ``streams - 1`` decodes beside a
        mean chunk, or ``streams`` decodes, of mean context. ``token_s`` is the chunk's secant.

        Raises:
            InputError: no classes, none of them arrives, or the KV cache holds no request.
        """
        total = sum(c.rate_rps for c in classes)
        if total <= 0:
            raise InputError("classes must arrive: at least one rate_rps above 0 is needed")
        answers = sum(c.rate_rps * c.output_tokens for c in classes)
        context = (
            sum(
                c.rate_rps * c.output_tokens * (c.prompt_tokens + c.output_tokens / 2)
                for c in classes
            )
            / answers
        )
        streams = min(max_num_seqs, int(kv_tokens / context))
        if streams < 1:
            raise InputError(
                f"a KV cache of {kv_tokens:,.0f} tokens holds no request of {context:,.0f} tokens on average"
            )
        chunks = sum(c.rate_rps * c.prompt_tokens for c in classes) / chunk_tokens
        pairs = sum(c.rate_rps * c.prompt_tokens * (c.prompt_tokens + 1) / 2 for c in classes)
        windowed = sum(
            c.rate_rps * (inside * (inside + 1) / 2 + (c.prompt_tokens - inside) * timing.window)
            for c in classes
            for inside in (min(c.prompt_tokens, timing.window),)
        )
        window = min(context, timing.window)
        time = EngineTime(timing)

        def mixed_s(tokens: float) -> float:
            share = tokens / chunk_tokens / chunks
            others = streams - 1
            decoding = (others, others * context, others * window)
            return time(Batch(1.0, tokens, pairs * share, windowed * share, *decoding))

        token_s = (mixed_s(chunk_tokens) - mixed_s(chunk_tokens / 2)) / (chunk_tokens / 2)
        return cls(
            streams,
            chunk_tokens,
            mixed_s(chunk_tokens) - token_s * chunk_tokens,
            token_s,
            time(Batch(0.0, 0.0, 0.0, 0.0, streams, streams * context, streams * window)),
            whole_chunks,
        )
