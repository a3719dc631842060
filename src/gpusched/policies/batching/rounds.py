"""Scheduling in unit rounds: the setting in which MC-SF's theory is stated.

One worker, one round a batch: a request started in round ``p`` holds ``s + k`` tokens in round
``p + k`` for ``k = 1 .. o`` (arXiv 2502.07115, Section 2). Admission knows predicted lengths only. Where
they are too short, or admission does not look ahead, running requests are cleared when the budget
would be exceeded: they lose their progress and wait again, at their old place. One that outlives its
prediction is taken to end with the next round; when cleared, what it has shown of its length is kept.
The same look-ahead admits requests in the simulator and in an engine; here it runs on plain arrays.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError, InputError, unknown_name
from gpusched.policies.batching import order as orders
from gpusched.policies.batching import round_kernel as kernel
from gpusched.policies.batching.discipline import (
    ALL,
    LEAST_PREDICTED,
    LOOK_AHEAD,
    NEWEST,
    OPEN,
    RANDOM,
)

Ints = NDArray[np.int64]
Order = Literal["output", "output-then-index", "volume", "peak", "arrival"]
Clearing = Literal["all", "random", "newest", "least-predicted"]

_ORDERS = {
    "output": orders.SHORTEST,
    "output-then-index": kernel.LENGTH,
    "volume": orders.VOLUME,
    "peak": kernel.PEAK,
    "arrival": orders.FCFS,
}
_CLEARINGS = {"all": ALL, "random": RANDOM, "newest": NEWEST, "least-predicted": LEAST_PREDICTED}


@dataclass(frozen=True, slots=True)
class RoundPolicy:
    """How waiting requests are ordered, admitted and cleared."""

    order: Order = "output"
    """``output``: shortest prediction first, ties to the smaller prompt (``output-then-index``: to the
    earlier request)."""
    look_ahead: bool = True
    """Whether admission checks predicted use in all later rounds, or only that of the next one."""
    margin: float = 0.0
    """Share of the budget that admission leaves free."""
    skip: int = 0
    """Waiting requests that may be passed over in a round when they do not fit."""
    clearing: Clearing = "all"
    clear_probability: float = 1.0
    """Of each running request, again and again until the rest fit, where clearing is ``random``."""

    def __post_init__(self) -> None:
        for name, allowed in (("order", _ORDERS), ("clearing", _CLEARINGS)):
            if getattr(self, name) not in allowed:
                raise InputError(unknown_name(name, getattr(self, name), allowed))
        if not 0.0 <= self.margin < 1.0:
            raise InputError(f"margin must be from 0 to below 1, got {self.margin}")
        if not 0.0 < self.clear_probability <= 1.0:
            raise InputError(
                f"clear_probability must be above 0 and at most 1, got {self.clear_probability}"
            )
        if self.skip < 0:
            raise InputError(f"skip must not be negative, got {self.skip}")


ROUND_POLICIES = {
    "mc-sf": RoundPolicy(),
    "mc-volume": RoundPolicy(order="volume"),
    "mc-fcfs": RoundPolicy(order="arrival"),
    "a-max": RoundPolicy(),
    "a-min": RoundPolicy(clearing="least-predicted"),
    "greedy": RoundPolicy(order="arrival", look_ahead=False, margin=0.25),
    "greedy-clearing": RoundPolicy(
        order="arrival", look_ahead=False, margin=0.2, clearing="random", clear_probability=0.2
    ),
}
"""MC-SF, volume first (arXiv 2606.22327), MC-Benchmark, A_max and A_min on the upper and lower ends of
predicted ranges (arXiv 2508.14544), alpha-protection greedy and alpha-protection beta-clearing."""


@dataclass(frozen=True, slots=True)
class RoundRun:
    """What became of each request, arrays of shape (requests,)."""

    starts: Ints
    """Round in which it started for good."""
    completions: Ints
    clearings: Ints
    """How often it was cleared."""
    total_latency: int
    """Sum of completion less arrival, rounds."""


def checked(
    arrival: ArrayLike, prompt: ArrayLike, output: ArrayLike, kv_tokens: int
) -> tuple[Ints, Ints, Ints]:
    """Return the three columns as integers.

    Raises:
        InputError: lengths differ or are not positive, an arrival is negative, or a request never
            fits.
    """
    a, s, o = (np.asarray(column, np.int64).ravel() for column in (arrival, prompt, output))
    if not len(a) == len(s) == len(o) or not len(a):
        raise InputError(
            f"arrivals, prompts and outputs need one entry a request, got {len(a)}, {len(s)}, {len(o)}"
        )
    for name, column, least in (("arrival", a, 0), ("prompt", s, 1), ("output", o, 1)):
        low = np.flatnonzero(column < least)
        if len(low):
            raise InputError(
                f"request {low[0]}: {name} must be at least {least}, got {column[low[0]]}"
            )
    large = np.flatnonzero(s + o > kv_tokens)
    if len(large):
        i = large[0]
        raise InputError(
            f"request {i} can never be served: {s[i]} + {o[i]} tokens exceed the budget of {kv_tokens}"
        )
    return a, s, o


def run_rounds(
    arrival: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    kv_tokens: int,
    policy: str | RoundPolicy = "mc-sf",
    *,
    predicted: ArrayLike | None = None,
    priority: ArrayLike | None = None,
    seed: int = 0,
) -> RoundRun:
    """Serve requests round by round; arrays of shape (requests,), rounds and tokens.

    ``predicted`` output lengths are the true ones by default; ``priority`` ranks take the place of the
    policy's order, lower first. A request starts alone whatever its prediction and the margin.

    Raises:
        InputError: no such policy, a request can never be served, lengths or predictions are not
            positive, or entries are missing.
        InfeasibleError: the policy clears the same requests for ever.
    """
    if isinstance(policy, str):
        if policy not in ROUND_POLICIES:
            raise InputError(unknown_name("round policy", policy, ROUND_POLICIES))
        policy = ROUND_POLICIES[policy]
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    n = len(a)
    expected = o if predicted is None else np.asarray(predicted, np.int64).ravel()
    if len(expected) != n or (expected < 1).any():
        raise InputError(f"predictions must be {n} positive lengths, one a request")
    given = np.zeros(n) if priority is None else np.asarray(priority, np.float64).ravel()
    if len(given) != n or np.isnan(given).any():
        raise InputError(f"priorities must be {n} numbers, one a request")
    sequence = np.argsort(a, kind="stable")
    starts, clearings = np.full(n, -1, np.int64), np.zeros(n, np.int64)
    counters = np.zeros(4, np.int64)
    heap, aside, running, planned = (np.zeros(n, np.int64) for _ in range(4))
    ends, bases = np.zeros((1, n), np.int64), np.zeros((1, n), np.int64)
    kernel.serve(
        a[sequence], s[sequence], o[sequence], expected[sequence].copy(), given[sequence],
        kv_tokens, int((1.0 - policy.margin) * kv_tokens + 1e-9),
        LOOK_AHEAD if policy.look_ahead else OPEN,
        _ORDERS[policy.order] if priority is None else kernel.GIVEN,
        policy.skip, _CLEARINGS[policy.clearing], policy.clear_probability, seed, np.zeros(n),
        heap, aside, running, ends, bases, planned, starts, clearings, counters,
    )  # fmt: skip
    if counters[kernel.STUCK] > kernel.MOST_CLEARINGS:
        raise InfeasibleError(
            f"the policy clears the same requests again and again (round {counters[kernel.ROUND]}): "
            "use a larger margin, random clearing, or look ahead"
        )
    begun, cleared = np.empty(n, np.int64), np.empty(n, np.int64)
    begun[sequence], cleared[sequence] = starts, clearings
    return RoundRun(begun, begun + o, cleared, int((begun + o - a).sum()))


def mc_sf_starts(
    arrival: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    kv_tokens: int,
    *,
    order: Order = "output",
    continue_on_misfit: bool = False,
) -> Ints:
    """Return the round in which each request starts under MC-SF with lengths known exactly, shape
    (requests,); ``order`` ``arrival`` is MC-Benchmark."""
    skip = np.size(output) if continue_on_misfit else 0
    policy = replace(ROUND_POLICIES["mc-sf"], order=order, skip=skip)
    return run_rounds(arrival, prompt, output, kv_tokens, policy).starts
