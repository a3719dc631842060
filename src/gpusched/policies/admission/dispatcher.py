"""Staggered batch scheduling for live use: a buffer, a clock, and what is known of the engines.

It takes the time as an argument and never waits, so that an event loop, a thread or a test drives
it: call ``tick`` after every arrival and report, and at ``next_event_s``.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.policies.admission.staggered import (
    active_engines,
    deadline_s,
    mean_pass_s,
    oldest_ready,
    pass_s,
    record_pass,
    release_interval_s,
    release_s,
    watch,
)
from gpusched.policies.routing.packing import NO_CAP, pack, room_tokens, sort_window

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Staggering:
    """Gated engines and how they are fed."""

    engines: int
    units: int
    """Data-parallel units of each engine."""
    chunk_tokens: int
    """Tokens that a unit computes in one pass at most."""
    fixed_s: float
    """A pass takes ``fixed_s + token_s`` times the tokens of its busiest unit."""
    token_s: float
    network_s: float = 0.0
    """From here to an engine; an engine keeps its gate open for it after reporting."""
    lowest_interval_s: float = 0.002
    window_passes: int = 32
    """Passes over which the mean is taken."""
    patience: float = 3.0
    """Passes of silence after which an engine is out of use."""
    age_limit: int = 3
    """Windows that a request may be passed over before load should be shed."""
    spill_tokens: int = NO_CAP
    """By which a request may overfill a unit that has other work."""

    def __post_init__(self) -> None:
        for name, least in (
            ("engines", 1),
            ("units", 1),
            ("chunk_tokens", 1),
            ("fixed_s", 0.0),
            ("token_s", 0.0),
            ("network_s", 0.0),
            ("lowest_interval_s", 0.0),
            ("window_passes", 1),
            ("patience", 1.0),
            ("age_limit", 0),
            ("spill_tokens", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise InputError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A batch to send to an engine."""

    engine: int
    number: int
    """How many batches this engine has been sent, this one included."""
    requests: tuple[tuple[Hashable, int], ...]
    """Each request and its unit within the engine."""


@dataclass(slots=True, eq=False)
class _Held:
    """A request that is buffered, or on an engine and not known to be computed."""

    request: Hashable
    tokens: int
    cached: Ints
    """Tokens cached on each unit of all engines."""
    age: int = 0
    unit: int = -1
    """Among the units of all engines."""
    batch: int = 0

    @property
    def uncached(self) -> int:
        return self.tokens - int(self.cached[self.unit])


@dataclass
class StaggeredDispatcher:
    """Holds requests and says when which of them go to which engine and unit."""

    settings: Staggering
    overloaded: bool = field(default=False, init=False)
    """Whether the last release passed over a request more often than the limit."""

    def __post_init__(self) -> None:
        s = self.settings
        n = s.engines
        self._buffer: list[_Held] = []
        self._outstanding: list[list[_Held]] = [[] for _ in range(n)]
        self._sent = [0] * n
        self._received = [0] * n
        self._left = np.zeros(n * s.units, np.int64)
        self._reported = np.ones(n, np.bool_)
        self._reported_s = np.full(n, -math.inf)
        self._predicted_end_s = np.full(n, math.inf)
        self._deadline_s = np.full(n, math.inf)
        self._started_s = np.zeros(n)
        self._out = np.zeros(n, np.bool_)
        self._failed = np.zeros(n, np.bool_)
        self._window_s = np.zeros((1, s.window_passes))
        self._passes = 0
        self._last_release_s = -math.inf
        self._unloaded = False

    @property
    def buffered(self) -> tuple[Hashable, ...]:
        """Requests that are held back, in order of arrival."""
        return tuple(held.request for held in self._buffer)

    @property
    def mean_pass_s(self) -> float:
        """Mean time of the latest passes; before the first, of a full one."""
        s = self.settings
        prior_s = pass_s(s.fixed_s, s.token_s, float(s.chunk_tokens))
        return float(mean_pass_s(self._window_s, 0, self._passes, prior_s))

    @property
    def active_engines(self) -> int:
        """Engines in use."""
        return int(active_engines(self._out, 0, self.settings.engines))

    @property
    def interval_s(self) -> float:
        """Seconds between releases."""
        s = self.settings
        mean_s = self.mean_pass_s
        return float(
            release_interval_s(
                mean_s, s.network_s, self.active_engines, s.lowest_interval_s, mean_s
            )
        )

    @property
    def out_of_use(self) -> tuple[int, ...]:
        """Engines that failed or stay silent: to be polled, and reported or failed."""
        return tuple(np.flatnonzero(self._out).tolist())

    def available_tokens(self, engine: int) -> Ints:
        """Return what each unit of an engine can take into its next pass: its chunk less what was
        left behind there and what is on its way."""
        return self._available()[self._units(engine)]

    def arrive(
        self, request: Hashable, tokens: int, cached_tokens: ArrayLike | None = None
    ) -> None:
        """Take in a request of a prompt of ``tokens``.

        ``cached_tokens`` are those cached on each unit, shape (engines, units); of a prompt that is
        cached whole, an engine still computes the last token.

        Raises:
            InputError: the prompt is empty, cached tokens are negative or of another shape.
        """
        s = self.settings
        cached = np.zeros(s.engines * s.units, np.int64)
        if cached_tokens is not None:
            given = np.asarray(cached_tokens, np.int64)
            if given.shape != (s.engines, s.units):
                raise InputError(
                    f"cached tokens need one row an engine and one column a unit, "
                    f"{s.engines} x {s.units}, got {' x '.join(map(str, given.shape))}"
                )
            cached[:] = np.minimum(given.ravel(), tokens - 1)
        if tokens < 1 or (cached < 0).any():
            raise InputError(
                f"request {request!r} needs at least one token and no negative number of cached "
                f"ones, got {tokens} and {cached.min()}"
            )
        if not self._buffer:
            idle = self._reported & ~self._out
            self._unloaded = any(not self._outstanding[e] for e in np.flatnonzero(idle))
        self._buffer.append(_Held(request, tokens, cached))

    def cancel(self, request: Hashable) -> bool:
        """Forget a request: its client has gone, or another engine serves it. Return whether it was
        known."""
        for held in self._buffer:
            if held.request == request:
                self._buffer.remove(held)
                return True
        for outstanding in self._outstanding:
            for held in outstanding:
                if held.request == request:
                    outstanding.remove(held)
                    return True
        return False

    def outstanding(self, engine: int) -> tuple[Hashable, ...]:
        """Return the requests that an engine has been sent and is not known to have computed."""
        return tuple(held.request for held in self._outstanding[engine])

    def overdue(self) -> tuple[Hashable, ...]:
        """Return the held requests that have been passed over more often than the limit."""
        limit = self.settings.age_limit
        return tuple(held.request for held in self._buffer if held.age > limit)

    def pass_ended(
        self,
        engine: int,
        now_s: float,
        left_tokens: ArrayLike | None = None,
        *,
        duration_s: float | None = None,
        received: int | None = None,
    ) -> None:
        """Take in an engine's report that a pass ended: the truth, however late.

        ``left_tokens`` is what each unit has still to compute of the first ``received`` batches
        (default: nothing, of all that were sent); a unit computes in order. ``duration_s`` defaults
        to the time since the engine was given work. Of an engine that failed nothing is taken in.
        """
        s = self.settings
        if self._failed[engine]:
            return
        left = np.zeros(s.units, np.int64)
        if left_tokens is not None:
            left[:] = left_tokens
        self._received[engine] = self._sent[engine] if received is None else received
        if self._outstanding[engine]:
            spent_s = now_s - self._started_s[engine] if duration_s is None else duration_s
            record_pass(self._window_s, 0, self._passes, spent_s)
            self._passes += 1
        self._left[self._units(engine)] = left
        self._outstanding[engine] = self._still_outstanding(engine, left)
        self._out[engine] = False
        self._deadline_s[engine] = math.inf
        self._reported_s[engine] = now_s
        self._reported[engine] = True
        if self._on_the_way(engine) or not self._room(engine):
            self._begin(engine, now_s)

    def engine_failed(self, engine: int) -> None:
        """Take an engine out of use; what it had not computed goes back into the buffer, first in
        line. It comes back with ``engine_joined``."""
        self._out[engine] = True
        self._failed[engine] = True
        lost = self._outstanding[engine]
        for held in lost:
            held.unit = -1
            held.age += 1
        self._buffer[:0] = lost
        self._outstanding[engine] = []
        self._left[self._units(engine)] = 0

    def engine_joined(self, engine: int, now_s: float) -> None:
        """Take an engine into use that has no work."""
        self._outstanding[engine] = []
        self._left[self._units(engine)] = 0
        self._received[engine] = self._sent[engine]
        self._failed[engine] = False
        self._out[engine] = False
        self._deadline_s[engine] = math.inf
        self._reported_s[engine] = now_s
        self._reported[engine] = True

    def tick(self, now_s: float) -> list[Dispatch]:
        """Return what is to be sent now."""
        s = self.settings
        watch(now_s, self._deadline_s, self._out, 0, s.engines)
        dispatches = []
        while self._buffer:
            engine = self._next_engine(now_s)
            if engine < 0 or self._release_s(engine) > now_s:
                break
            dispatches += self._release(engine, now_s)
        for e in np.flatnonzero(self._reported & ~self._out):
            if self._outstanding[e]:
                self._begin(int(e), now_s)
        return dispatches

    def next_event_s(self, now_s: float) -> float:
        """Return when ``tick`` has something to do next if nothing is reported before; endless if
        never."""
        in_use = np.flatnonzero(~self._out)
        next_s = float(self._deadline_s[in_use].min(initial=math.inf))
        if self._buffer:
            engine = self._next_engine(now_s)
            if engine >= 0:
                next_s = min(next_s, max(self._release_s(engine), now_s))
            for e in in_use:
                if not self._reported[e] and self._predicted_end_s[e] > now_s:
                    next_s = min(next_s, float(self._predicted_end_s[e]))
        return next_s

    def _units(self, engine: int) -> slice:
        return slice(engine * self.settings.units, (engine + 1) * self.settings.units)

    def _available(self) -> Ints:
        available = self.settings.chunk_tokens - self._left
        for engine in range(self.settings.engines):
            for held in self._on_the_way(engine):
                available[held.unit] -= held.uncached
        return available

    def _room(self, engine: int) -> int:
        """Tokens that the units of an engine can take into its next pass."""
        units = self._units(engine)
        return int(room_tokens(self._available(), units.start, units.stop))

    def _on_the_way(self, engine: int) -> list[_Held]:
        """Requests sent that the engine had not received when it last reported."""
        return [h for h in self._outstanding[engine] if h.batch > self._received[engine]]

    def _still_outstanding(self, engine: int, left: Ints) -> list[_Held]:
        """What the engine has not computed: what is on its way, and the tail of each unit's queue
        that holds the tokens left."""
        kept = []
        uncovered = dict(enumerate(left.tolist(), engine * self.settings.units))
        for held in reversed(self._outstanding[engine]):
            if held.batch > self._received[engine]:
                kept.append(held)
            elif uncovered[held.unit] > 0:
                uncovered[held.unit] -= held.uncached
                kept.append(held)
        return kept[::-1]

    def _next_engine(self, now_s: float) -> int:
        return int(
            oldest_ready(
                now_s, self._reported, self._reported_s, self._predicted_end_s, self._out,
                0, self.settings.engines,
            )
        )  # fmt: skip

    def _release_s(self, engine: int) -> float:
        """When the buffer may go to an engine that is ready."""
        goes_on = bool(self._reported[engine]) and bool(self._outstanding[engine])
        return float(
            release_s(
                self._last_release_s, self.interval_s, self.settings.lowest_interval_s,
                sum(held.tokens for held in self._buffer), self._room(engine),
                self._unloaded, goes_on,
            )
        )  # fmt: skip

    def _release(self, engine: int, now_s: float) -> list[Dispatch]:
        """Pack the buffer onto an engine that is ready; nothing if all would spill too much."""
        s = self.settings
        count = len(self._buffer)
        order = np.arange(count)
        lengths = np.array([held.tokens for held in self._buffer], np.int64)
        ages = np.array([held.age for held in self._buffer], np.int64)
        hits = np.array([held.cached for held in self._buffer], np.int64)
        assigned = np.empty(count, np.int64)
        units = self._units(engine)
        sort_window(order, count, lengths, ages)
        oldest = pack(
            order, count, lengths, hits, self._available(), assigned, ages,
            units.start, units.stop, s.chunk_tokens, s.spill_tokens,
        )  # fmt: skip
        self.overloaded = bool(oldest > s.age_limit)
        for held, age in zip(self._buffer, ages.tolist(), strict=True):
            held.age = age
        if (assigned < 0).all():
            self._close(engine, now_s)
            return []
        self._last_release_s = now_s
        self._unloaded = False
        self._sent[engine] += 1
        batch = []
        for i in order.tolist():
            if assigned[i] >= 0:
                held = self._buffer[i]
                held.unit = int(assigned[i])
                held.batch = self._sent[engine]
                batch.append(held)
        self._buffer = [h for h, unit in zip(self._buffer, assigned, strict=True) if unit < 0]
        self._outstanding[engine] += batch
        self._begin(engine, now_s)
        requests = tuple((held.request, held.unit - units.start) for held in batch)
        return [Dispatch(engine, self._sent[engine], requests)]

    def _close(self, engine: int, now_s: float) -> None:
        """Send an engine nothing more before its next report."""
        if self._reported[engine]:
            self._begin(engine, now_s)
        self._predicted_end_s[engine] = math.inf

    def _begin(self, engine: int, now_s: float) -> None:
        """Expect a pass over all that the engine has been given."""
        s = self.settings
        work = s.chunk_tokens - self._available()[self._units(engine)]
        busiest = float(np.minimum(work, s.chunk_tokens).max())
        expected_s = pass_s(s.fixed_s, s.token_s, busiest)
        self._reported[engine] = False
        self._started_s[engine] = now_s
        full = not self._room(engine)
        self._predicted_end_s[engine] = math.inf if full else now_s + s.network_s + expected_s
        if self._deadline_s[engine] == math.inf:
            self._deadline_s[engine] = deadline_s(
                now_s, expected_s, self.mean_pass_s, s.network_s, s.patience
            )


def warm_up() -> None:
    """Compile what a dispatcher calls, so that no request waits for it."""
    d = StaggeredDispatcher(Staggering(1, 1, 1, fixed_s=1.0, token_s=0.0))
    d.arrive(None, 2)
    d.arrive(None, 2)
    d.tick(0.0)
    d.pass_ended(0, 1.0, [1])
    d.tick(1.0)
    d.next_event_s(1.0)
