"""Groups of an engine from its traffic: known in full, or estimated while it runs.

The estimator sees a request when it arrives, its length when it has ended, and how far the running
ones have come: nothing that an engine could not know. Rates are exponentially weighted counts of
arrivals. Lengths are a sample of recent arrivals, weighted by their Kaplan-Meier survival curve.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.policies.batching.discipline import Discipline
from gpusched.policies.batching.equilibrium import (
    IterationTime,
    RequestTypes,
    equilibrium,
    grouped_types,
)
from gpusched.policies.batching.thresholds import (
    ENDLESS,
    Thresholds,
    check_nested,
    check_wait,
    nested_thresholds,
    survival_into,
    wait_thresholds,
)
from gpusched.policies.lengths.survival import survival_weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MARGIN = 0.98
"""Share of the stable rate that thresholds are set for when the load is beyond it."""
RATE_MEMORY_S = 60.0
"""Time constant of the arrival rates."""
SAMPLE = 2048
"""Requests whose lengths are kept."""
SAMPLE_SPAN_S = 300.0
"""Time the sample covers at least: at high rates it holds every so many-th request only."""
ENOUGH = 32
"""Answers that must have ended before thresholds are set."""
LEAST_RATE_RPS = 1e-6
"""Below this rate of arrivals thresholds are left as they are."""
HYSTERESIS = 0.1
"""Thresholds stay while none of them would change by more than this share."""
FIRST_END, LAST_END = 64, 1024
"""Output tokens at which the first and the last but one group end where traffic is not known."""


class Groups(NamedTuple):
    """Settings of an engine's groups, one entry an array each."""

    ends: Ints
    """Largest output length, or output tokens given at the end."""
    thresholds: Ints
    caps: Ints
    """Running requests of a group at most, paused ones aside."""
    seats: int
    """Requests that hold KV cache at most, paused ones included."""
    hold_s: float
    note: str = ""
    """What was assumed where the load is unstable."""


class Load(NamedTuple):
    """Traffic of one engine: arrival rates of its groups, and a sample of its requests."""

    rate_rps: Floats
    """Of each group; of all requests together where groups are of decode progress."""
    decode_ends: Ints
    """Most decode iterations of each group's requests, or decode iterations at its end."""
    prompt_tokens: Floats
    output_tokens: Floats
    weight: Floats
    group: Ints

    def types(self, window: int) -> RequestTypes:
        """Return the types of request, one a rate."""
        return grouped_types(
            self.prompt_tokens, self.output_tokens - 1.0, self.group, self.rate_rps,
            self.decode_ends[-len(self.rate_rps) :], weight=self.weight, window=window,
        )  # fmt: skip


def groups_of(
    chosen: Discipline, load: Load, time: IterationTime, kv_tokens: float, window: int = 0
) -> Groups:
    """Return the groups of WAIT or Nested WAIT for a load.

    Beyond the stable load the thresholds are those of the stable load, and a note says so.

    Raises:
        InputError: the discipline's own thresholds are outside their region.
    """
    types = load.types(window)
    if chosen.thresholds != "auto":
        return _given(chosen, load, types, time, kv_tokens)

    def fitting(types: RequestTypes) -> Thresholds:
        if chosen.name == "wait":
            return wait_thresholds(types, time, kv_tokens, slack=chosen.slack)
        return nested_thresholds(
            types, load.output_tokens - 1.0, load.decode_ends, time, kv_tokens,
            weight=load.weight, slack=chosen.slack,
        )  # fmt: skip

    note = ""
    try:
        found = fitting(types)
    except InfeasibleError:
        rate_rps = float(load.rate_rps.sum())
        multiple = equilibrium(types, time, kv_tokens).stable_multiple
        found = fitting(types.scale_rate(MARGIN * multiple))
        note = (
            f"{chosen.name}: {rate_rps:.4g} requests/s an engine are unstable, at most "
            f"{multiple * rate_rps:.4g} are stable; thresholds are set for "
            f"{MARGIN * multiple * rate_rps:.4g}"
        )
    seats = chosen.cap or found.residents
    caps = np.full(len(found.ends), seats, np.int64)
    return Groups(found.ends, found.starts, caps, seats, chosen.hold_s or found.hold_s, note)


def _given(
    chosen: Discipline, load: Load, types: RequestTypes, time: IterationTime, kv_tokens: float
) -> Groups:
    """The discipline's own thresholds; every stage may be at its threshold, and no more run."""
    ends = load.decode_ends
    n = np.array(chosen.thresholds.split("/"), np.float64)
    if len(n) != len(ends):
        raise InputError(
            f"batching policy {chosen.name}: {len(n)} thresholds for {len(ends)} groups, whose "
            f"longest outputs are {', '.join(str(end + 1) for end in ends)} tokens"
        )
    before = np.append(0, ends[:-1] + 1)
    if chosen.name == "nested-wait":
        prompt = float(np.average(load.prompt_tokens, weights=load.weight))
        survival = survival_into(load.output_tokens - 1.0, ends, load.weight)
        rate_rps = float(load.rate_rps.sum())
        wrong = check_nested(n, survival, rate_rps, prompt, ends, time, kv_tokens)
        stages = ends + 1 - before
    else:
        wrong = check_wait(types, time, kv_tokens, n)
        stages = ends + 1
    if wrong:
        raise InputError(f"batching policy {chosen}: {'; '.join(wrong)}")
    starts = n.astype(np.int64)
    hold_s = chosen.hold_s or 2.0 * time(types.batch(n[: len(types.rate_rps)]))
    last = np.append(ends[:-1] + 1, ENDLESS)
    return Groups(last, starts, starts * stages, chosen.cap or int(kv_tokens), hold_s)


def prior_ends(groups: int) -> Ints:
    """Return the output tokens at which groups end where traffic is not known, in geometric steps."""
    ends = np.rint(np.geomspace(FIRST_END, LAST_END, groups - 1)).astype(np.int64)
    return np.append(ends, ENDLESS)


class GroupEstimator:
    """Estimates the traffic of alike engines and sets their groups by it.

    Group ends stay where they are, since running requests are counted by group. Until ``ENOUGH``
    answers have ended nobody is held, as first come, first served.

    ``seats`` is the largest number of running requests of an engine, ``engines`` how many share the
    traffic; ``window`` is the timing model's.
    """

    def __init__(
        self,
        chosen: Discipline,
        time: IterationTime,
        kv_tokens: float,
        *,
        seats: int,
        engines: int = 1,
        window: int = 0,
        start_s: float = 0.0,
    ) -> None:
        self.chosen = chosen
        self.time = time
        self.kv_tokens = kv_tokens
        self.seats = seats
        self.engines = engines
        self.window = window
        self.start_s = start_s
        self.clock_s = start_s
        self.arrived = 0
        ends = prior_ends(chosen.segments)
        free = np.full(len(ends), seats, np.int64)
        self.groups = Groups(ends, free, free, seats, 0.0)
        self.nested = chosen.name == "nested-wait"
        self._counts = np.zeros(1 if self.nested else len(ends))
        self._learned = False
        self.estimates = 0
        self.unstable = 0
        self.note = ""
        """What was assumed when the load was last estimated to be unstable."""
        self.numbers = np.zeros(0, np.int64)
        """Numbers of the requests in the sample, ascending."""
        self._prompt = np.zeros(0)
        self._group = np.zeros(0, np.int64)
        self._length = np.zeros(0, np.int64)
        self._ended = np.zeros(0, np.bool_)

    def observe_arrival(
        self, arrival_s: ArrayLike, prompt_tokens: ArrayLike, predicted_tokens: ArrayLike = 1
    ) -> Ints:
        """Count requests in order of arrival; return the numbers to name them by later."""
        at_s = np.atleast_1d(np.asarray(arrival_s, np.float64))
        prompt = np.broadcast_to(np.asarray(prompt_tokens, np.float64), at_s.shape)
        predicted = np.broadcast_to(np.asarray(predicted_tokens), at_s.shape)
        numbers = self.arrived + np.arange(len(at_s))
        if not len(at_s):
            return numbers
        self.arrived += len(at_s)
        group = np.zeros(len(at_s), np.int64)
        if not self.nested:
            group = np.searchsorted(self.groups.ends[:-1], predicted)
        self._advance(float(at_s[-1]))
        recent = np.exp((at_s - self.clock_s) / RATE_MEMORY_S)
        self._counts += np.bincount(group, recent, len(self._counts))
        rate_rps = float(self._rates(self.clock_s).sum()) * self.engines
        span_s = min(SAMPLE_SPAN_S, self.clock_s - self.start_s)
        kept = numbers % max(round(rate_rps * span_s / SAMPLE), 1) == 0
        fresh = np.zeros(int(kept.sum()), np.int64)
        self.numbers = np.concatenate((self.numbers, numbers[kept]))[-SAMPLE:]
        self._prompt = np.concatenate((self._prompt, prompt[kept]))[-SAMPLE:]
        self._group = np.concatenate((self._group, group[kept]))[-SAMPLE:]
        self._length = np.concatenate((self._length, fresh))[-SAMPLE:]
        self._ended = np.concatenate((self._ended, fresh > 0))[-SAMPLE:]
        return numbers

    def observe_end(self, numbers: ArrayLike, output_tokens: ArrayLike) -> None:
        """State the lengths of answers that have ended."""
        self._note(numbers, output_tokens, True)

    def censor(self, numbers: ArrayLike, produced_tokens: ArrayLike) -> None:
        """State the lengths that running answers have reached."""
        self._note(numbers, produced_tokens, False)

    def _note(self, numbers: ArrayLike, tokens: ArrayLike, ended: bool) -> None:
        numbers = np.atleast_1d(np.asarray(numbers, np.int64))
        slots = np.searchsorted(self.numbers, numbers)
        known = slots < len(self.numbers)
        known[known] = self.numbers[slots[known]] == numbers[known]
        self._length[slots[known]] = np.broadcast_to(np.asarray(tokens), numbers.shape)[known]
        self._ended[slots[known]] = ended

    def _advance(self, now_s: float) -> None:
        if now_s > self.clock_s:
            self._counts *= math.exp((self.clock_s - now_s) / RATE_MEMORY_S)
            self.clock_s = now_s

    def _rates(self, now_s: float) -> Floats:
        """Arrivals a second and engine, one entry a group: counts over the time they stand for."""
        seen = max((now_s - self.start_s) / RATE_MEMORY_S, 1e-9)
        counts = self._counts * math.exp((self.clock_s - now_s) / RATE_MEMORY_S)
        rates: Floats = counts / (self.engines * RATE_MEMORY_S * -math.expm1(-seen))
        return rates

    def load(self, now_s: float) -> Load | None:
        """Return the traffic of one engine as estimated by now; None where too little is known.

        A group of which no answer has begun counts as absent.
        """
        rates = self._rates(now_s)
        if int(self._ended.sum()) < ENOUGH or rates.sum() < LEAST_RATE_RPS:
            return None
        seen = self._length > 0
        length, ended, group = self._length[seen], self._ended[seen], self._group[seen]
        rates = np.where(np.bincount(group, minlength=len(rates)) > 0, rates, 0.0)
        weight = np.zeros(len(length))
        for g in range(len(rates)):
            own = group == g
            weight[own] = survival_weights(length[own], ended[own])
        finite = self.groups.ends[:-1] - 1
        last = max(int(length.max()) - 1, int(finite[-1]) + 1 if len(finite) else 1)
        return Load(
            rates, np.append(finite, last), self._prompt[seen], length.astype(np.float64), weight,
            group,
        )  # fmt: skip

    def thresholds(self, now_s: float) -> Groups:
        """Return the groups to use from now on: the same object as before unless they change."""
        load = self.load(now_s)
        if load is None:
            return self.groups
        found = groups_of(self.chosen, load, self.time, self.kv_tokens, self.window)
        self.estimates += 1
        if found.note:
            self.unstable += 1
            self.note = (
                f"{found.note} ({self.unstable} of {self.estimates} estimates so far were unstable)"
            )
        found = found._replace(seats=min(found.seats, self.seats), note="")
        if not self._learned or _differ(found, self.groups):
            self.groups = found
            self._learned = True
        return self.groups


def _differ(found: Groups, current: Groups) -> bool:
    new, old = (
        np.concatenate((g.thresholds, g.caps, [g.seats, g.hold_s])) for g in (found, current)
    )
    return bool((np.abs(new - old) > HYSTERESIS * old).any())
