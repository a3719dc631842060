"""Fluid equilibrium of an engine under a stationary load.

Requests of type ``j`` arrive ``rate_j`` a second and need one prefill and ``decode_steps_j``
decodes. In equilibrium every iteration takes in what arrives during one iteration, so each of the
``decode_steps_j + 1`` stages holds ``n_j = rate_j * iteration_s`` requests, and the iteration's
time solves ``iteration_s = time(batch of n)``. Below, a load's batch over ``span_s`` seconds is
the batch that holds ``span_s`` seconds of arrivals at every stage.

Source: arXiv 2504.11320, section 3 (fluid benchmark); iteration times with prefill cost are solved
numerically, which the paper allows for any monotone cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from gpusched.errors import InfeasibleError, InputError
from gpusched.timing.compiled import CompiledTiming

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LONG_SPAN_S = 1e6
"""Arrivals of this span make a batch so large that an iteration's fixed cost no longer counts."""


class Batch(NamedTuple):
    """Mean content of one iteration; counts may be fractions."""

    prefills: float
    prompt_tokens: float
    prompt_pairs: float
    """Query-key pairs of the prompts: ``l (l + 1) / 2`` each."""
    window_pairs: float
    """The same where a query sees at most the sliding window's keys."""
    decodes: float
    context_tokens: float
    """Sum of the decodes' contexts, the token being computed included."""
    window_tokens: float
    """Sum of the decodes' contexts, each cut at the sliding window."""

    @property
    def cached_tokens(self) -> float:
        """Tokens of KV cache that the batch holds."""
        return self.prompt_tokens + self.context_tokens


IterationTime = Callable[[Batch], float]
"""Seconds of one iteration, not decreasing in any field of its batch."""


@dataclass(frozen=True, slots=True)
class AffineTime:
    """The paper's iteration time (B1): a fixed part and one per cached token."""

    fixed_s: float
    token_s: float

    def __post_init__(self) -> None:
        if not (0 < self.fixed_s < np.inf and 0 <= self.token_s < np.inf):
            raise InputError(
                "iteration time needs fixed_s > 0 and token_s >= 0,"
                f" got {self.fixed_s:g} and {self.token_s:g}"
            )

    def __call__(self, batch: Batch) -> float:
        """Return the seconds of an iteration over a batch."""
        return self.fixed_s + self.token_s * batch.cached_tokens


@dataclass(frozen=True, slots=True)
class EngineTime:
    """A compiled timing model's mean iteration time.

    Where fewer than one prefill falls to an iteration, that share of the iterations carries one
    and the others decode only.
    """

    timing: CompiledTiming

    def __call__(self, batch: Batch) -> float:
        """Return the mean seconds of an iteration over a batch."""
        t = self.timing
        context_s = (
            t.context_s * batch.context_tokens + t.window_context_s * batch.window_tokens
            if batch.decodes > 0
            else 0.0
        )
        decode_s = _read(t.decode_s, max(batch.decodes, 1.0)) + context_s
        if batch.prefills <= 0:
            return decode_s
        share = min(batch.prefills, 1.0)
        mixed_s = (
            _read(t.tokens_s, max(batch.decodes + batch.prompt_tokens / share, 1.0))
            + _read(t.logits_s, max(batch.decodes + batch.prefills / share, 1.0))
            + (t.decode_fixed_s + context_s if batch.decodes > 0 else 0.0)
            + t.prefill_fixed_s
            + (t.work_s * batch.prompt_pairs + t.window_work_s * batch.window_pairs) / share
        )
        return (1.0 - share) * decode_s + share * mixed_s


def _read(table: Floats, at: float) -> float:
    """A table's value between and, by its last slope, beyond its entries."""
    last = len(table) - 1
    low = min(int(at), last - 1)
    return float(table[low] + (at - low) * (table[low + 1] - table[low]))


@dataclass(frozen=True, slots=True)
class RequestTypes:
    """Types of requests, one entry an array each; a type may stand for requests of many lengths."""

    rate_rps: Floats
    prompt_tokens: Floats
    """Mean over the type's requests."""
    decode_steps: Floats
    """Mean number of decode iterations: one less than the output tokens of an engine."""
    last_step: Ints
    """Most decode iterations of any of the type's requests."""
    sums: Floats
    """Shape (types, 7): fields of the batch that holds one request at every stage of its life."""
    variance: Floats
    """Variance of a resident's cached tokens at a random moment of its iterations, tokens squared."""

    @classmethod
    def of(
        cls, rate_rps: ArrayLike, prompt_tokens: ArrayLike, decode_steps: ArrayLike, window: int = 0
    ) -> Self:
        """Return types whose requests are all alike.

        Raises InputError unless all entries are finite, rates and steps at least 0 and prompts at
        least 1 token.
        """
        arrays = np.broadcast_arrays(
            *(
                np.atleast_1d(np.asarray(a, np.float64))
                for a in (rate_rps, prompt_tokens, decode_steps)
            )
        )
        rate, prompt, steps = (np.array(a) for a in arrays)
        _check("rate_rps", rate, 0.0)
        _check("prompt_tokens", prompt, 1.0)
        _check("decode_steps", steps, 0.0)
        sums = life_sums(prompt, steps, window)
        return cls(
            rate, prompt, steps, steps.astype(np.int64), sums, ((steps + 1.0) ** 2 - 1.0) / 12
        )

    @property
    def lifetime_tokens(self) -> Floats:
        """Cached tokens summed over a request's iterations: ``w = (l' + 1)(l + l'/2)``."""
        w: Floats = self.sums[:, 1] + self.sums[:, 5]
        return w

    def batch(self, per_stage: Floats) -> Batch:
        """Return the batch with ``per_stage`` requests of each type at each of its stages."""
        return Batch(*(float(x) for x in per_stage @ self.sums))

    def scale_rate(self, factor: float) -> "RequestTypes":
        """Return the same mix, ``factor`` times as frequent."""
        return RequestTypes(
            self.rate_rps * factor,
            self.prompt_tokens,
            self.decode_steps,
            self.last_step,
            self.sums,
            self.variance,
        )


def life_sums(prompt: Floats, last: Floats, window: int = 0, first: Floats | float = 0.0) -> Floats:
    """Batches, one row each, that hold one request at each of the stages ``first .. last``.

    Stage 0 is the prefill and stage ``s`` the ``s``-th decode, of context ``prompt + s``.
    Shape (rows, 7), columns as the fields of Batch.
    """
    first = np.broadcast_to(np.asarray(first, np.float64), prompt.shape)
    prefill = (first == 0).astype(np.float64)
    before = np.maximum(first - 1.0, 0.0)

    def contexts(steps: Floats) -> Floats:
        return steps * prompt + 0.5 * steps * (steps + 1.0)

    def seen(steps: Floats) -> Floats:
        rising = np.clip(window - prompt, 0.0, steps)
        return contexts(rising) + (steps - rising) * window

    rising = np.minimum(prompt, float(window))
    columns = (
        prefill,
        prefill * prompt,
        prefill * 0.5 * prompt * (prompt + 1.0),
        prefill * (0.5 * rising * (rising + 1.0) + (prompt - rising) * window),
        last - before,
        contexts(last) - contexts(before),
        seen(last) - seen(before),
    )
    return np.stack(columns, axis=-1)


def types_of(
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    rate_rps: float,
    groups: int = 8,
    window: int = 0,
    grouped_by: ArrayLike | None = None,
) -> RequestTypes:
    """Return the types of a trace: groups of near-equal size by output length, or by
    ``grouped_by``, such as predicted lengths.

    The groups part at quantiles of the output length; requests of equal length share a group, so
    there may be fewer. Rates are in proportion to the groups' sizes and all sums over requests'
    lives are exact means, not those of a mean request. An engine emits the first output token in
    the prefill, so ``decode_steps`` is ``output_tokens - 1``. ``window`` is the timing model's.
    ``last_step`` is the end of each group, in decode steps.

    Raises InputError where there are no requests, lengths below 1 or ``groups`` below 1.
    """
    prompt, steps = lengths_of(prompt_tokens, output_tokens)
    _check("rate_rps", np.array([rate_rps]), 0.0)
    if groups < 1:
        raise InputError(f"groups must be at least 1, got {groups}")
    key = steps if grouped_by is None else np.asarray(grouped_by, np.float64) - 1.0
    cuts = np.quantile(key, np.arange(1, groups + 1) / groups, method="inverted_cdf")
    ends = np.unique(cuts)
    group = np.searchsorted(ends, key)
    share = np.bincount(group) / len(group)
    return grouped_types(prompt, steps, group, rate_rps * share, ends, window=window)


def grouped_types(
    prompt_tokens: Floats,
    decode_steps: Floats,
    group: Ints,
    rate_rps: Floats,
    last_step: ArrayLike,
    *,
    weight: Floats | None = None,
    window: int = 0,
) -> RequestTypes:
    """Return one type a group of a sample whose requests count by ``weight``.

    ``rate_rps`` and ``last_step`` have one entry a group; a group without requests has no work.
    """
    count = len(rate_rps)
    weight = np.ones(len(group)) if weight is None else weight

    def summed(values: Floats) -> Floats:
        return np.asarray(np.bincount(group, weight * values, count), np.float64)

    total = summed(np.ones(len(group)))

    def mean(values: Floats, over: Floats = total) -> Floats:
        return np.divide(values, over, out=np.zeros(count), where=over > 0)

    sums = life_sums(prompt_tokens, decode_steps, window)
    residents = summed(decode_steps + 1.0)
    tokens = summed(sums[:, 1] + sums[:, 5])
    squares = summed(_square_sums(prompt_tokens, 0.0, decode_steps))
    return RequestTypes(
        np.asarray(rate_rps, np.float64),
        mean(summed(prompt_tokens)),
        mean(summed(decode_steps)),
        np.asarray(last_step, np.int64),
        np.stack([mean(summed(column)) for column in sums.T], axis=-1),
        np.maximum(mean(squares, residents) - mean(tokens, residents) ** 2, 0.0),
    )


def lengths_of(prompt_tokens: ArrayLike, output_tokens: ArrayLike) -> tuple[Floats, Floats]:
    """Return prompt tokens and decode steps of the requests, checked."""
    prompt = np.asarray(prompt_tokens, np.float64).ravel()
    output = np.asarray(output_tokens, np.float64).ravel()
    if prompt.size == 0 or prompt.size != output.size:
        raise InputError(
            "lengths of requests must be two arrays of equal size, not empty;"
            f" got {prompt.size} prompt and {output.size} output lengths"
        )
    _check("prompt_tokens", prompt, 1.0)
    _check("output_tokens", output, 1.0)
    return prompt, output - 1.0


def _square_sums(prompt: Floats, first: Floats | float, last: Floats) -> Floats:
    """Sum of ``(prompt + s)^2`` over ``s = first .. last``."""

    def below(top: Floats) -> Floats:
        return top * (top + 1.0) * (2.0 * top + 1.0) / 6.0

    return below(prompt + last) - below(prompt + first - 1.0)


def _check(name: str, values: Floats, least: float) -> None:
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= least)))
    if wrong.size:
        raise InputError(
            f"{name} must be finite and at least {least:g}; entry {wrong[0]} is {values[wrong[0]]:g}"
        )


@dataclass(frozen=True, slots=True)
class Equilibrium:
    """The fluid balance of a load on one engine; infinite where the load is too high for any."""

    load: float
    """Seconds of work that a second of arrivals brings in ever larger batches; below 1 is needed."""
    iteration_s: float
    per_stage: Floats
    """Requests of each type at each of its stages."""
    memory_tokens: float
    """Cached tokens of the balance."""
    decode_tokens_per_s: float
    """Offered decode tokens: no online policy completes more."""
    kv_tokens: float
    """Capacity."""
    stable_multiple: float
    """The rates times this number fill the capacity exactly: the border of the stability region."""

    @property
    def stable(self) -> bool:
        """Whether the balance exists and fits into the capacity."""
        return self.memory_tokens <= self.kv_tokens

    def require_stable(self, rate_rps: float) -> None:
        """Raise InfeasibleError with the bound and the rate that would be stable, unless stable."""
        if self.stable:
            return
        why = (
            f"one second of arrivals brings {self.load:.3g} s of work, and no batch does it faster"
            if self.load >= 1
            else f"in balance they hold {self.memory_tokens:,.0f} tokens of KV cache,"
            f" above the capacity of {self.kv_tokens:,.0f}"
        )
        raise InfeasibleError(
            f"{rate_rps:.4g} requests/s are unstable on one engine: {why}; at most"
            f" {rate_rps * self.stable_multiple:.4g} requests/s of this mix are stable"
            f" ({self.stable_multiple:.3g} times these rates)"
        )


def equilibrium(types: RequestTypes, time: IterationTime, kv_tokens: float = np.inf) -> Equilibrium:
    """Return the fluid balance (B4)-(B7) of the types' load, and the border of its stability.

    With an AffineTime of fixed part ``d0`` and ``d1`` a token this is
    ``iteration_s = d0 / (1 - d1 sum(rate w))`` and ``memory = d0 sum(rate w) / (1 - d1 sum(rate w))``.
    """
    if not kv_tokens > 0:
        raise InputError(f"KV capacity must be above 0 tokens, got {kv_tokens:g}")

    def iteration_s(span_s: float) -> float:
        return time(types.batch(types.rate_rps * span_s))

    load = (iteration_s(2.0 * LONG_SPAN_S) - iteration_s(LONG_SPAN_S)) / LONG_SPAN_S
    tokens_per_s = float(types.rate_rps @ types.lifetime_tokens)
    full_span_s = kv_tokens / tokens_per_s if tokens_per_s > 0 else np.inf
    if np.isfinite(full_span_s):
        multiple = full_span_s / iteration_s(full_span_s)
    else:
        multiple = 1.0 / load if load > 0 else np.inf
    low = high = iteration_s(0.0)
    while iteration_s(high) > high and high < LONG_SPAN_S:
        low, high = high, 2.0 * high
    if iteration_s(high) > high:
        span_s = np.inf
    elif high == low:
        span_s = high
    else:
        span_s = brentq(lambda x: iteration_s(x) - x, low, high, xtol=1e-15, rtol=1e-14)
    offered = types.rate_rps > 0
    per_stage = np.where(offered, np.where(offered, types.rate_rps, 1.0) * span_s, 0.0)
    return Equilibrium(
        load=load,
        iteration_s=span_s,
        per_stage=per_stage,
        memory_tokens=span_s * tokens_per_s if tokens_per_s > 0 else 0.0,
        decode_tokens_per_s=float(types.rate_rps @ types.decode_steps),
        kv_tokens=kv_tokens,
        stable_multiple=multiple,
    )


class AffineFit(NamedTuple):
    """An AffineTime fitted to another iteration time, and how well it fits."""

    fixed_s: float
    token_s: float
    r2: float
    mean_relative_error: float


def affine_of(
    time: IterationTime,
    types: RequestTypes,
    batch_sizes: ArrayLike = tuple(range(1, 129)),
) -> AffineFit:
    """Fit the paper's affine iteration time by least squares over batches of the types' mix.

    ``batch_sizes`` counts the requests of a batch, spread over their stages as in equilibrium. The
    paper fits batches of 1 to 128 requests of 256 prompt and 20 output tokens.

    Raises InputError unless there are two different sizes and some type is offered.
    """
    sizes = np.asarray(batch_sizes, np.float64).ravel()
    residents = float(types.rate_rps @ (types.decode_steps + 1.0))
    if np.unique(sizes).size < 2 or sizes.min() <= 0 or residents <= 0:
        raise InputError("an affine fit needs two different batch sizes above 0 and a rate above 0")
    batches = [types.batch(types.rate_rps * (size / residents)) for size in sizes]
    tokens = np.array([batch.cached_tokens for batch in batches])
    seconds = np.array([time(batch) for batch in batches])
    token_s, fixed_s = np.polyfit(tokens, seconds, 1)
    fitted = fixed_s + token_s * tokens
    spread = float(np.sum((seconds - seconds.mean()) ** 2))
    r2 = 1.0 - float(np.sum((seconds - fitted) ** 2)) / spread if spread > 0 else 1.0
    error = float(np.mean(np.abs(fitted / seconds - 1.0)))
    return AffineFit(float(fixed_s), float(token_s), r2, error)
