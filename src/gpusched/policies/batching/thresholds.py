"""Thresholds of WAIT and Nested WAIT: how many requests a group starts with, and how many run.

Source: arXiv 2504.11320, conditions (B8)-(B10) for known lengths and (B11)-(B16) for unknown ones
in the numbering of the fluid equilibrium's module. Iteration times may be any monotone function of
the batch; with an affine one everything agrees with the paper's formulas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from gpusched.errors import InfeasibleError, InputError
from gpusched.policies.batching.equilibrium import (
    Batch,
    IterationTime,
    RequestTypes,
    equilibrium,
    life_sums,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ETA = 0.05
"""Added to survival probabilities, so that each segment drains faster than it fills."""
SAFETY = 2.33
"""Standard deviations of memory that caps leave free: one per cent of the time it is exceeded."""
ENDLESS = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Groups of an engine, one entry an array each.

    Memory is kept by ``residents`` alone: a cap on a group would not free what its paused requests
    hold, and would split seats that others could use.
    """

    ends: Ints
    """Largest output length of each group, or output tokens given at its end; the last is endless."""
    per_stage: Floats
    """Requests at each stage of a group in one iteration: the paper's n."""
    residents: int
    """Requests that may hold KV cache at once, paused ones included."""
    iteration_s: float
    """Iteration with every group at its threshold."""
    memory_tokens: float
    """KV tokens then."""
    hold_s: float
    """Longest hold of a request."""

    @property
    def starts(self) -> Ints:
        """Requests with which a group starts: thresholds as whole numbers, at least one."""
        return np.maximum(np.ceil(self.per_stage - 1e-9), 1).astype(np.int64)


def slack_for(load: float, slack: float) -> float:
    """Return the slack to use at a load below one: near the critical load it costs much memory."""
    return slack * max(1.0 - load, 0.0)


def threshold_span_s(types: RequestTypes, time: IterationTime, slack: float) -> float:
    """Return the span whose arrivals, at every stage, take ``1 / (1 + slack)`` of it to serve.

    Infinite if no batch is that fast.
    """

    def excess(span_s: float) -> float:
        return (1.0 + slack) * time(types.batch(types.rate_rps * span_s)) - span_s

    high = max(excess(0.0), 1e-9)
    while excess(high) > 0.0:
        high *= 2.0
        if high > 1e7:
            return math.inf
    return float(brentq(excess, 0.0, high, xtol=1e-15, rtol=1e-14))


def wait_thresholds(
    types: RequestTypes,
    time: IterationTime,
    kv_tokens: float,
    *,
    slack: float = 0.1,
    shrink: bool = True,
    whole: bool = False,
) -> Thresholds:
    """Return WAIT's thresholds for types of known length.

    ``n_j >= rate_j * iteration_s(n)`` with ``slack`` to spare, which shrinks as the load nears one
    (``shrink``); ``whole`` solves for whole thresholds.

    Raises:
        InfeasibleError: no thresholds satisfy (B8)-(B10): the load is outside the stability region.
    """
    balance = equilibrium(types, time, kv_tokens)
    balance.require_stable(float(types.rate_rps.sum()))
    spare = slack_for(balance.load, slack) if shrink else slack
    span_s = threshold_span_s(types, time, spare)
    per_stage = types.rate_rps * span_s
    memory = float(per_stage @ types.lifetime_tokens)
    if memory > kv_tokens:
        per_stage = balance.per_stage
        memory = balance.memory_tokens
    if whole:
        per_stage = np.maximum(np.ceil(per_stage - 1e-9), 1.0)
        for _ in range(10_000):
            needed = (1.0 + spare) * types.rate_rps * time(types.batch(per_stage))
            grown = np.maximum(np.ceil(needed - 1e-9), 1.0)
            if (grown <= per_stage).all():
                break
            per_stage = np.maximum(grown, per_stage)
        memory = float(per_stage @ types.lifetime_tokens)
        if memory > kv_tokens:
            raise InfeasibleError(
                f"whole thresholds need {memory:,.0f} tokens of KV cache, more than the "
                f"{kv_tokens:,.0f} there are; use a smaller slack or fewer groups"
            )
    iteration_s = time(types.batch(per_stage))
    return Thresholds(
        ends=np.append(types.last_step[:-1] + 1, ENDLESS),
        per_stage=per_stage,
        residents=most_residents(types, kv_tokens),
        iteration_s=iteration_s,
        memory_tokens=memory,
        hold_s=2.0 * iteration_s,
    )


def check_wait(types: RequestTypes, time: IterationTime, kv_tokens: float, n: Floats) -> list[str]:
    """Return which of WAIT's conditions the thresholds ``n`` violate.

    Each type's threshold must cover what arrives during an iteration with all at their thresholds
    (B9), whose memory must fit (B10).
    """
    memory = float(n @ types.lifetime_tokens)
    iteration_s = time(types.batch(n))
    found = [
        f"type {j}: {rate * iteration_s:.6g} arrive in an iteration, above its threshold {own:g}"
        for j, (own, rate) in enumerate(zip(n, types.rate_rps, strict=True))
        if rate * iteration_s > own * (1.0 + 1e-9)
    ]
    return found + _excess(memory, kv_tokens)


def check_nested(
    n: Floats,
    survival: Floats,
    rate_rps: float,
    prompt_tokens: float,
    decode_ends: Ints,
    time: IterationTime,
    kv_tokens: float,
) -> list[str]:
    """Return which of Nested WAIT's conditions the thresholds ``n`` violate.

    The first threshold must exceed what arrives during an iteration with every stage at its
    threshold (B12), later ones what survives of the one before, but not all of it (B13), and the
    memory of all stages must fit (B14). Arguments as of ``overflow_buffer_tokens``.
    """
    first = np.append(0, decode_ends[:-1] + 1)
    prompts = np.full(len(n), prompt_tokens)
    iteration_s = time(Batch(*(n @ life_sums(prompts, decode_ends.astype(float), 0, first))))
    found = []
    if rate_rps * iteration_s >= n[0]:
        found.append(
            f"segment 0: {rate_rps * iteration_s:.6g} arrive in an iteration, not below its "
            f"threshold {n[0]:g}"
        )
    for k in range(1, len(n)):
        share = n[k] / n[k - 1]
        if not survival[k] < share < 1.0:
            found.append(
                f"segment {k}: threshold {n[k]:g} is {share:.6g} of the one before, not between the "
                f"surviving share {survival[k]:.6g} and 1"
            )
    return found + _excess(segment_memory_tokens(n, prompt_tokens, decode_ends), kv_tokens)


def _excess(memory_tokens: float, kv_tokens: float) -> list[str]:
    if memory_tokens <= kv_tokens:
        return []
    return [
        f"{memory_tokens:,.0f} tokens at the thresholds exceed the capacity of {kv_tokens:,.0f}"
    ]


def most_residents(types: RequestTypes, kv_tokens: float) -> int:
    """Return how many requests of this mix may hold KV cache at once, so that they exceed the
    capacity one per cent of the time: ``N mean + SAFETY sqrt(N variance) = kv_tokens``."""
    presence = types.rate_rps * (types.decode_steps + 1.0)
    share = presence / presence.sum()
    resident = types.lifetime_tokens / (types.decode_steps + 1.0)
    mean = float(share @ resident)
    variance = float(share @ (types.variance + resident**2)) - mean**2
    spread = SAFETY * math.sqrt(max(variance, 0.0))
    root = (-spread + math.sqrt(spread**2 + 4.0 * mean * kv_tokens)) / (2.0 * mean)
    return max(int(root**2 + 1e-9), 1)


def segment_memory_tokens(n: Floats, prompt_tokens: float, decode_ends: Ints) -> float:
    """Return the KV tokens of segments at their thresholds (B14); ``decode_ends`` in decode steps."""
    total = 0.0
    previous = 0
    for k, (own, end) in enumerate(zip(n, decode_ends, strict=True)):
        stages = end - previous + (1 if k == 0 else 0)
        middle = end / 2.0 if k == 0 else (previous + 1 + end) / 2.0
        total += float(own) * (prompt_tokens + middle) * stages
        previous = int(end)
    return total


def drift_exponent(n_before: float, n: float, survival: float) -> float:
    """Return the root ``theta > 0`` of (B16): how fast a boundary queue's tail falls off.

    Raises:
        InputError: the segment does not drain: ``n <= survival * n_before``.
    """
    if not survival * n_before < n:
        raise InputError(
            f"a segment of threshold {n:g} does not drain what {n_before:g} requests surviving with "
            f"probability {survival:g} bring"
        )
    if n >= n_before or survival <= 0.0:
        return math.inf

    def balance(theta: float) -> float:
        return n_before * math.log1p(survival * math.expm1(theta)) - theta * n

    low = 4.0 * (n - n_before * survival) / n_before
    while balance(low) > 0.0:
        low /= 2.0
    high = 2.0 * low
    while balance(high) < 0.0:
        high *= 2.0
    return float(brentq(balance, low, high, xtol=1e-14))


def drift_bound(n_before: float, n: float, survival: float) -> float:
    """Return the lower bound of ``drift_exponent`` that follows (B16)."""
    return 8.0 * (n - n_before * survival) / n_before


def overflow_buffer_tokens(
    n: Floats,
    survival: Floats,
    prompt_tokens: float,
    decode_ends: Ints,
    *,
    horizon_s: float,
    fixed_s: float,
    failure: float,
) -> float:
    """Return the capacity above ``segment_memory_tokens`` with which boundary queues overflow with
    at most the probability ``failure`` over the horizon: second term of (B15).

    ``survival[k]`` is the probability to go on into segment ``k`` for those in the one before.
    """
    m = len(n)
    logarithm = math.log(m * (1.0 + horizon_s / fixed_s) / failure)
    total = 0.0
    for k in range(1, m):
        theta = drift_exponent(float(n[k - 1]), float(n[k]), float(survival[k]))
        queue = float(n[k]) + (0.0 if math.isinf(theta) else logarithm / theta)
        total += (prompt_tokens + int(decode_ends[k - 1])) * queue
    return total


def thresholds_for_total(total: float, survival: Floats, decode_ends: Ints) -> Floats:
    """Return the segments' thresholds that together hold ``total`` requests (the authors' rule).

    ``n_k = n_1 * prod q_r`` and ``sum_k n_k * stages_k = total``; ``survival[0]`` is ignored.
    """
    ratio = np.concatenate(([1.0], np.cumprod(survival[1:])))
    stages = np.diff(decode_ends, prepend=0)
    return np.asarray(total / float(ratio @ stages) * ratio)


def nested_thresholds(
    types: RequestTypes,
    decode_steps: Floats,
    decode_ends: Ints,
    time: IterationTime,
    kv_tokens: float,
    *,
    weight: Floats | None = None,
    slack: float = 0.1,
) -> Thresholds:
    """Return Nested WAIT's thresholds for requests whose output lengths are unknown.

    Segments end at ``decode_ends``. Their survival is that of a sample of ``decode_steps``, whose
    requests count by ``weight``; each threshold exceeds what survives by ``ETA``, up to the one
    before, and the first takes in what arrives in an iteration with ``slack`` to spare. The
    iteration is that of the fluid equilibrium, in which requests leave within segments too.

    Raises:
        InfeasibleError: the load is outside the stability region.
    """
    balance = equilibrium(types, time, kv_tokens)
    rate_rps = float(types.rate_rps.sum())
    balance.require_stable(rate_rps)
    ratios = np.minimum(survival_into(decode_steps, decode_ends, weight) + ETA, 1.0)
    ratios[0] = 1.0
    span_s = threshold_span_s(types, time, slack_for(balance.load, slack))
    if span_s * float(types.rate_rps @ types.lifetime_tokens) > kv_tokens:
        span_s = balance.iteration_s
    n = np.asarray(rate_rps * span_s * np.cumprod(ratios), np.float64)
    iteration_s = time(types.batch(types.rate_rps * span_s))
    prompt_tokens = float(np.average(types.prompt_tokens, weights=types.rate_rps))
    return Thresholds(
        ends=np.append(decode_ends[:-1] + 1, ENDLESS),
        per_stage=n,
        residents=most_residents(types, kv_tokens),
        iteration_s=iteration_s,
        memory_tokens=segment_memory_tokens(n, prompt_tokens, decode_ends),
        hold_s=2.0 * iteration_s,
    )


def segment_ends(decode_steps: Floats, segments: int) -> Ints:
    """Return where segments of near-equal numbers of ends end, the last with the longest answer."""
    cuts = np.quantile(decode_steps, np.arange(1, segments) / segments, method="inverted_cdf")
    return np.unique(np.maximum(np.append(cuts, decode_steps.max()), 1.0)).astype(np.int64)


def survival_into(
    decode_steps: Floats, decode_ends: Ints | Sequence[int], weight: Floats | None = None
) -> Floats:
    """Return (B11): the probability to enter each segment for those in the one before; first 1."""
    ends = np.asarray(decode_ends)
    reach = [1.0] + [float(np.average(decode_steps > end, weights=weight)) for end in ends[:-1]]
    before = np.concatenate(([1.0], reach[:-1]))
    return np.asarray(np.divide(reach, before, out=np.zeros(len(reach)), where=before > 0))
