"""A model of a decode pool whose data-parallel units step together: how level they stay.

Expert parallelism makes every unit wait for the slowest, so a step takes
``fixed_s + request_s * (largest batch) + kv_token_s * (largest KV cache)``. Requests stay on the unit
they are placed on and join at the start of a step. KV capacity is not limited: what it would have
to be is one of the figures. The simulator of whole fleets is ``gpusched.sim.kernel``.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.compilation import entry_kernel, kernel
from gpusched.errors import InputError, unknown_name
from gpusched.policies.draws import random_u64
from gpusched.policies.routing.choice import route
from gpusched.policies.routing.placement import FACTOR, place
from gpusched.policies.routing.policy import ROUTING

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEXICOGRAPHIC = -1
ROUTINGS = ("random", "round-robin", "least-requests", "least-tokens")
NONE = -1
UNLIMITED = 1e18
STEPS, SPAN, BATCH, BATCH_CV, BATCH_PEAK, KV, KV_CV, KV_PEAK, KV_MOST = range(9)


@dataclass(frozen=True, slots=True)
class LockstepUnits:
    """Data-parallel units of one decode engine."""

    units: int
    fixed_s: float
    request_s: float
    kv_token_s: float

    def __post_init__(self) -> None:
        if self.units < 1 or self.fixed_s <= 0.0 or min(self.request_s, self.kv_token_s) < 0.0:
            raise InputError("a decode pool needs a unit, a positive fixed_s, and no negative cost")


@dataclass(frozen=True, slots=True)
class LockstepRun:
    """Time averages over steps once ``settled`` requests have come, but for ``kv_most``."""

    steps: int
    mean_step_s: float
    batch: float
    """Requests a unit."""
    batch_variation: float
    """Coefficient of variation of the batch between units."""
    batch_peak: float
    """Largest batch over the mean one."""
    kv_tokens: float
    """Per unit."""
    kv_variation: float
    kv_peak: float
    """Largest KV cache over the mean one."""
    kv_most: float
    """Tokens of the largest KV cache ever."""
    placed: Ints
    """Unit of each request."""


def run_lockstep(
    units: LockstepUnits,
    arrival_s: ArrayLike,
    prompt_tokens: ArrayLike,
    output_tokens: ArrayLike,
    placement: str = "lexicographic",
    *,
    factor: float = FACTOR,
    slack: int = 0,
    settled: int = 0,
    seed: int = 0,
) -> LockstepRun:
    """Decode requests whose prefill is done on arrival; stop measuring when the last has come.

    ``placement`` is ``lexicographic``, with ``factor`` and ``slack`` of ``decode_placement.place``,
    or a routing policy, which sees the requests and KV tokens of the units.

    Raises:
        InputError: arrivals do not ascend, lengths are not positive, or no such placement.
    """
    a = np.ascontiguousarray(arrival_s, np.float64)
    prompt = np.ascontiguousarray(prompt_tokens, np.int64)
    output = np.ascontiguousarray(output_tokens, np.int64)
    n = len(a)
    if not n == len(prompt) == len(output) or not n or (np.diff(a) < 0).any():
        raise InputError("arrivals must ascend, with one prompt and one output length each")
    if min(prompt.min(), output.min()) < 1:
        raise InputError("prompts and outputs need at least one token")
    if placement != "lexicographic" and placement not in ROUTINGS:
        raise InputError(unknown_name("placement", placement, ("lexicographic", *ROUTINGS)))
    p = _Parameters(
        LEXICOGRAPHIC if placement == "lexicographic" else ROUTING[placement].kind,
        seed, units.units, units.fixed_s, units.request_s, units.kv_token_s, factor, slack, settled,
    )  # fmt: skip
    s = _State(
        batch=np.zeros(units.units),
        kv_tokens=np.zeros(units.units),
        free_tokens=np.full(units.units, UNLIMITED),
        ascending=np.arange(units.units),
        started_s=np.zeros(units.units),
        joining=np.zeros(n, np.int64),
        placed=np.full(n, NONE, np.int64),
        ending=np.full(int(output.max()) + 1, NONE, np.int64),
        following=np.full(n, NONE, np.int64),
        totals=np.zeros(9),
    )
    _run(p, s, a, prompt, output)
    t = s.totals
    span_s = max(t[SPAN], 1e-300)
    return LockstepRun(
        int(t[STEPS]), t[SPAN] / max(t[STEPS], 1.0), t[BATCH] / span_s, t[BATCH_CV] / span_s,
        t[BATCH_PEAK] / span_s, t[KV] / span_s, t[KV_CV] / span_s, t[KV_PEAK] / span_s, t[KV_MOST],
        s.placed,
    )  # fmt: skip


class _Parameters(NamedTuple):
    placement: int
    seed: int
    units: int
    fixed_s: float
    request_s: float
    kv_token_s: float
    factor: float
    slack: int
    settled: int


class _State(NamedTuple):
    # one entry a unit
    batch: Floats
    kv_tokens: Floats
    free_tokens: Floats
    ascending: Ints
    started_s: Floats
    # one entry a request
    joining: Ints
    """Requests that join the coming step are its head."""
    placed: Ints
    following: Ints
    """Next in the list of those that end with the same step."""
    ending: Ints
    """First request to end with a step, at the step's number modulo the size."""
    totals: Floats


@entry_kernel
def _run(p, s, arrival_s, prompt, output):  # type: ignore[no-untyped-def]
    n = len(arrival_s)
    came = 0
    running = 0
    step = 0
    now_s = arrival_s[0]
    while came < n:
        if running == 0:
            now_s = max(now_s, arrival_s[came])
        first = came
        while came < n and arrival_s[came] <= now_s:
            came += 1
        _join(s, p, first, came, step, prompt, output)
        running += came - first
        largest, most = _largest(s.batch), _largest(s.kv_tokens)
        duration_s = p.fixed_s + p.request_s * largest + p.kv_token_s * most
        if first >= p.settled:
            _measure(s, duration_s)
        now_s += duration_s
        step += 1
        for u in range(p.units):
            s.kv_tokens[u] += s.batch[u]
        slot = step % len(s.ending)
        r = s.ending[slot]
        s.ending[slot] = NONE
        while r != NONE:
            u = s.placed[r]
            s.batch[u] -= 1
            s.kv_tokens[u] -= prompt[r] + output[r]
            running -= 1
            r = s.following[r]


@kernel
def _join(s, p, first, last, step, prompt, output):  # type: ignore[no-untyped-def]
    """Place the requests ``first .. last - 1``, which give their first token in this step."""
    count = last - first
    for i in range(count):
        k = i
        while k > 0 and p.placement == LEXICOGRAPHIC:
            if prompt[s.joining[k - 1]] >= prompt[first + i]:
                break
            s.joining[k] = s.joining[k - 1]
            k -= 1
        s.joining[k] = first + i
    for i in range(count):
        r = s.joining[i]
        if p.placement == LEXICOGRAPHIC:
            u = place(
                prompt[r], s.batch, s.kv_tokens, s.free_tokens, s.ascending, 0, p.units, p.factor,
                p.slack,
            )  # fmt: skip
        else:
            u = route(
                p.placement, r, random_u64(p.seed, r), NONE, s.started_s, math.inf, s.batch,
                s.kv_tokens, 0, p.units,
            )  # fmt: skip
            s.batch[u] += 1
            s.kv_tokens[u] += prompt[r]
        s.placed[r] = u
        slot = (step + output[r]) % len(s.ending)
        s.following[r] = s.ending[slot]
        s.ending[slot] = r


@kernel
def _measure(s, duration_s):  # type: ignore[no-untyped-def]
    """Add a step to the averages over time."""
    s.totals[STEPS] += 1
    s.totals[SPAN] += duration_s
    largest, most = _largest(s.batch), _largest(s.kv_tokens)
    batch, batch_variation = _spread(s.batch)
    kv, kv_variation = _spread(s.kv_tokens)
    s.totals[BATCH] += duration_s * batch
    s.totals[BATCH_CV] += duration_s * batch_variation
    s.totals[BATCH_PEAK] += duration_s * largest / batch
    s.totals[KV] += duration_s * kv
    s.totals[KV_CV] += duration_s * kv_variation
    s.totals[KV_PEAK] += duration_s * most / kv
    s.totals[KV_MOST] = max(s.totals[KV_MOST], most)


@kernel
def _largest(values):  # type: ignore[no-untyped-def]
    largest = values[0]
    for value in values:
        largest = max(largest, value)
    return largest


@kernel
def _spread(values):  # type: ignore[no-untyped-def]
    """Mean and coefficient of variation."""
    mean = 0.0
    for value in values:
        mean += value / len(values)
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    return mean, math.sqrt(squares / len(values)) / mean
