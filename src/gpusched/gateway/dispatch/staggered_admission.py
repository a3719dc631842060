"""Staggered release to live engines: packed batches, one engine at a time (SBS).

The clock and the packing are those of ``StaggeredDispatcher``. An engine's report of a pass's end is
made of first bytes: those that come close together end one pass. Data-parallel units of an engine
cannot be addressed one by one, so an engine counts as one unit of their joint budget.
"""

from dataclasses import replace

import numpy as np

from gpusched.gateway.dispatch.admission import Desk, stands_apart
from gpusched.gateway.dispatch.deadlines import CallAt
from gpusched.gateway.dispatch.engine_times import EngineTimes
from gpusched.gateway.dispatch.fleet import Engine, Group
from gpusched.gateway.dispatch.flight import Flight, WaitingLine
from gpusched.gateway.dispatch.prefills import Prefills
from gpusched.policies.admission.dispatcher import StaggeredDispatcher, Staggering
from gpusched.policies.admission.policy import AdmissionPolicy

WINDOW = 512
"""Held requests that a release looks at; those beyond wait in line, by priority."""
GATHER_S = 0.003
"""First bytes within this time end one pass."""
NO_LIMIT = 1 << 60
PACE_CHANGE = 1.1
"""Factor by which a pace must differ before predictions follow it."""


class Staggered:
    """Holds requests and releases them in batches."""

    uses_prefixes = True

    def __init__(
        self,
        desk: Desk,
        group: Group,
        policy: AdmissionPolicy,
        units: int,
        times: EngineTimes,
        call_at: CallAt,
    ) -> None:
        self.desk, self.group, self.policy, self.times = desk, group, policy, times
        self.line = WaitingLine()
        self.prefills = Prefills(times, call_at, self._computed)
        self._call_at = call_at
        self._units = units
        self._pace = times.pace
        self.clock = StaggeredDispatcher(self._settings())
        self._ending: dict[int, float] = {}
        """Engines whose pass has ended, and when."""
        self._out: set[int] = set()
        self._working = False

    def offer(self, flight: Flight, now_s: float) -> None:
        """Hold a new request."""
        if stands_apart(flight, self.group) and self.desk.place(flight, now_s):
            return
        self.again(flight, now_s)
        self.look(now_s)

    def again(self, flight: Flight, now_s: float) -> None:
        """Hold a request."""
        if self.desk.hold(flight, now_s):
            flight.mark = 0
            self.line.push(flight)

    def look(self, now_s: float) -> None:
        """Release what is due."""
        if self._working:
            return
        self._working = True
        try:
            self._follow_health(now_s)
            self._fill()
            for dispatch in self.clock.tick(now_s):
                engine = self.group.entry.engines[dispatch.engine]
                for flight, _ in dispatch.requests:
                    assert isinstance(flight, Flight)
                    if flight.held and not self.desk.send(flight, engine, now_s, self.policy.name):
                        self.clock.cancel(flight)
                        flight.mark = 0
                        self.line.push(flight)
            for flight in self.clock.overdue() if self.clock.overloaded else ():
                assert isinstance(flight, Flight)
                self.desk.reject(flight, now_s)
        finally:
            self._working = False
        next_s = self.clock.next_event_s(now_s)
        if self.clock.buffered and next_s < float("inf"):
            self.desk.wake(next_s)

    def drop(self, flight: Flight) -> None:
        """Forget a held request."""
        if flight.mark:
            self.clock.cancel(flight)
        else:
            self.line.take(flight)

    def sent(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request has been sent."""
        self.prefills.sent(flight, engine, now_s)

    def began(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in a first byte."""
        self.prefills.began(flight, engine, now_s)

    def left(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request is gone from an engine."""
        self.prefills.left(flight, engine, now_s)

    def waiting(self) -> list[Flight]:
        """Return the held requests, those in the window first."""
        window = [flight for flight in self.clock.buffered if isinstance(flight, Flight)]
        return window + self.line.ordered()

    def _settings(self) -> Staggering:
        times, policy = self.times, self.policy
        return Staggering(
            engines=len(self.group.entry.engines),
            units=1,
            chunk_tokens=times.chunk_tokens * self._units,
            fixed_s=times.pace * times.fixed_s,
            token_s=times.pace * times.token_s / self._units,
            network_s=policy.network_s,
            lowest_interval_s=policy.lowest_interval_s,
            window_passes=policy.window_passes,
            age_limit=policy.age_limit or NO_LIMIT,
        )

    def _fill(self) -> None:
        """Move requests from the line into the window."""
        room = WINDOW - len(self.clock.buffered)
        while room > 0 and (flight := self.line.first()) is not None:
            self.line.pop()
            flight.mark = 1
            tokens = max(flight.request.prompt_tokens, 1)
            engine, cached = self.desk.cached(flight)
            hits = None
            if engine is not None and engine.lane is self.group.entry:
                hits = np.zeros((len(self.group.entry.engines), 1), np.int64)
                hits[engine.position] = min(cached, tokens - 1)
            self.clock.arrive(flight, tokens, hits)
            room -= 1

    def _follow_health(self, now_s: float) -> None:
        for engine in self.group.entry.engines:
            gone = not engine.usable or engine.silent
            if gone and engine.index not in self._out:
                self._out.add(engine.index)
                # What it has is the relay's to ask others for, not the clock's.
                for request in self.clock.outstanding(engine.position):
                    self.clock.cancel(request)
                self.clock.engine_failed(engine.position)
            elif not gone and engine.index in self._out:
                self._out.discard(engine.index)
                self.clock.engine_joined(engine.position, now_s)

    def _computed(self, flight: Flight, engine: Engine, now_s: float) -> None:
        if engine.lane is not self.group.entry:
            return
        if engine.index not in self._ending:
            self._ending[engine.index] = now_s
            self._call_at(now_s + GATHER_S, self._pass_ended, engine)

    def _pass_ended(self, engine: Engine) -> None:
        ended_s = self._ending.pop(engine.index)
        if engine.lane is not self.group.entry:
            return
        left = sum(flight.request.prompt_tokens for flight in self.prefills.at(engine))
        self.clock.pass_ended(engine.position, ended_s + GATHER_S, [left])
        if not 1.0 / PACE_CHANGE < self.times.pace / self._pace < PACE_CHANGE:
            self._pace = self.times.pace
            self.clock.settings = replace(
                self.clock.settings,
                fixed_s=self.times.pace * self.times.fixed_s,
                token_s=self.times.pace * self.times.token_s / self._units,
            )
        self.look(ended_s + GATHER_S)
