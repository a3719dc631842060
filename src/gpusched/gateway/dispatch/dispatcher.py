"""Admission and routing of requests over live engines.

Every method returns at once and takes the time as an argument; what happens later comes through
``call_at``. Each exchange ends in exactly one ``ended``, after it was sent or refused.
"""

import math
from collections.abc import Callable, Sequence
from time import perf_counter

from gpusched.engines.orca import read_report
from gpusched.engines.state import EngineState
from gpusched.gateway.dispatch.admission import Admission, Desk
from gpusched.gateway.dispatch.affinity import Affinities
from gpusched.gateway.dispatch.answer_rate import AnswerRate
from gpusched.gateway.dispatch.deadlines import CallAt, Deadlines, Timer
from gpusched.gateway.dispatch.fleet import Engine, Fleet, Group, Lane
from gpusched.gateway.dispatch.flight import Flight
from gpusched.gateway.dispatch.health import Health
from gpusched.gateway.dispatch.limits import Limits
from gpusched.gateway.dispatch.models import Models, renamed
from gpusched.gateway.dispatch.refusals import busy, unknown_model, unreachable
from gpusched.gateway.exchange import (
    NOWHERE,
    OTHER,
    EngineStatus,
    Exchange,
    Refusal,
    Relay,
)
from gpusched.policies.routing import choice
from gpusched.policies.routing.live import WeightedRouter
from gpusched.policies.views import Request

BUSY_PAUSE_S = 0.5
"""Before engines that all said they are busy are asked again."""
FRESH_S = 5.0
"""Age up to which an engine's last count of running requests completes a load report."""

AdmissionOf = Callable[[Desk, Group], Admission]


class LiveDispatcher:
    """Sends, holds or refuses requests; see ``exchange.Dispatcher``."""

    def __init__(
        self,
        fleet: Fleet,
        models: Models,
        health: Health,
        settings: Limits,
        admission_of: AdmissionOf,
        call_at: CallAt,
        seed: int = 0,
    ) -> None:
        self.fleet, self.models, self.health = fleet, models, health
        self.relay: Relay = _NoRelay()
        self.call_at = call_at
        self.seed = seed
        self.flights: dict[Exchange, Flight] = {}
        self.holding = 0
        self.submitted = 0
        self.hedges = 0
        self.retried = 0
        self.branches: dict[str, int] = {}
        self.rate = AnswerRate()
        self._timer: Timer | None = None
        self._timer_s = math.inf
        self._adopt(settings)
        self.affinities = Affinities(settings.prefix_index_bytes)
        self._set_admissions(admission_of)
        fleet.on_return = self._returned

    def _set_admissions(self, admission_of: AdmissionOf) -> None:
        self.admissions: list[Admission] = [
            admission_of(self, group) for group in self.fleet.groups
        ]
        self._keeps_prefixes = any(admission.uses_prefixes for admission in self.admissions)

    def _adopt(self, settings: Limits) -> None:
        self.settings = settings
        self._waits = Deadlines(
            self.call_at, settings.max_wait_s, lambda flight: not flight.held, self.reject
        )
        self._hedging = (
            Deadlines(self.call_at, settings.hedge_after_s, _needs_no_hedge, self.hedge)
            if settings.hedge_after_s is not None
            else None
        )

    @property
    def engines(self) -> Sequence[Engine]:
        """All engines by their index, those that are leaving included."""
        return self.fleet.engines

    # From the wire.

    def submit(self, exchange: Exchange, now_s: float) -> None:
        """Send, hold or refuse a request, now or at a later event."""
        start_s = perf_counter()
        number = self.submitted
        self.submitted = number + 1
        group = 0
        if exchange.model:
            group = self.models.group_of(exchange.model)
            if group < 0:
                self.relay.refuse(exchange, unknown_model(exchange.model, self.models.names))
                return
        prompt, predicted = exchange.prompt_tokens, exchange.predicted_tokens
        request = Request(exchange.received_s, prompt, 0, predicted, exchange.slo_class)
        flight = Flight(
            exchange, group, number, request, prompt + predicted, excluded=[*exchange.tried]
        )
        self.flights[exchange] = flight
        self.admissions[group].offer(flight, now_s)
        exchange.decision_s = perf_counter() - start_s

    def began(self, exchange: Exchange, engine: int, now_s: float) -> None:
        """Take in the first byte of an answer, or that a prefill is done."""
        at = self.fleet.engines[engine]
        self.health.succeeded(at, now_s)
        flight = self.flights.get(exchange)
        if flight is None or at not in flight.engines:
            return
        if engine == exchange.prefill_engine:
            self.admissions[flight.group].began(flight, at, now_s)
            self._leave(flight, at, now_s)
            self._look(now_s)
            return
        if flight.silent:
            flight.silent = False
            for other in flight.engines:
                other.prefilling -= 1
        exchange.engine = engine
        self.admissions[flight.group].began(flight, at, now_s)

    def ended(self, exchange: Exchange, now_s: float) -> None:
        """Take in that an exchange is over, however."""
        flight = self.flights.pop(exchange, None)
        if flight is None:
            return
        flight.over = True
        if flight.held:
            flight.held = False
            self.holding -= 1
            self.admissions[flight.group].drop(flight)
            return
        if exchange.outcome == "ok" and exchange.engine >= 0:
            engine = self.fleet.engines[exchange.engine]
            self.health.answered(engine, now_s)
            lane = engine.lane
            if lane is not None and isinstance(lane.router, WeightedRouter):
                lane.router.decode(engine.position, exchange.output_tokens)
        elif exchange.outcome == "failed" and not flight.silent:
            for engine in flight.engines:
                if self.health.cut(engine, now_s):
                    self.affinities.forget(engine.index)
        for engine in tuple(flight.engines):
            self._leave(flight, engine, now_s)
        self.rate.count(now_s)
        self._look(now_s)

    def failed(self, exchange: Exchange, engine: int, now_s: float, reason: str) -> bool:
        """Take in that an engine failed a request before its first byte; return whether another
        one has been or will be asked."""
        flight = self.flights.get(exchange)
        at = self.fleet.engines[engine]
        apart = exchange.prefill_engine != NOWHERE
        if self.health.failed(at, now_s, reason, not exchange.tried):
            self.affinities.forget(engine)
            if reason == "timeout":
                self.hedge_all(at, now_s)
        if flight is None or at not in flight.engines:
            return False
        exchange.tried.append(engine)
        flight.excluded.append(engine)
        if apart:
            for other in tuple(flight.engines):
                self._leave(flight, other, now_s)
        else:
            self._leave(flight, at, now_s)
            if flight.engines:
                return True
        if len(exchange.tried) > self.settings.retries:
            return False
        self.retried += 1
        flight.hedged = False
        flight.silent = True
        if self.place(flight, now_s):
            return True
        if reason == "closed" and at.usable and not apart and not at.full:
            return self.send(flight, at, now_s, "retry")
        return self._wait_again(flight, reason, now_s)

    def left(self, exchange: Exchange, engine: int, now_s: float) -> None:
        """Take in that the slower engine of a hedged pair has been cancelled."""
        flight = self.flights.get(exchange)
        at = self.fleet.engines[engine]
        if flight is not None and at in flight.engines:
            self._leave(flight, at, now_s)
            self._look(now_s)

    def load_report(self, engine: int, header: bytes, now_s: float) -> None:
        """Take in an ORCA load report of an answer's headers."""
        report = read_report(header)
        if report is None:
            return
        at = self.fleet.engines[engine]
        last = at.state
        state = EngineState() if last is None else last
        if report.running is None and last is not None and now_s - at.state_s > FRESH_S:
            state.running = None
        for name in ("running", "waiting", "kv_usage"):
            value = getattr(report, name)
            if value is not None:
                setattr(state, name, value)
        # The report was written before this answer's request was counted out.
        if state.running is None:
            at.state, at.state_s = state, now_s
        else:
            self.fleet.report(at, state, now_s)

    def body_for(self, exchange: Exchange, engine: int) -> bytes:
        """Return the body to send to an engine: the client's, unless it names the model by an alias
        of this gateway's."""
        return renamed(exchange.body, self.fleet.engines[engine], exchange.model)

    def models_document(self) -> bytes:
        """Return the answer to ``GET /v1/models``."""
        return self.models.document()

    def statuses(self) -> list[EngineStatus]:
        """Return the engines in the order of their indices, those that have left as not up."""
        return [engine.status for engine in self.fleet.engines]

    def notes(self) -> list[str]:
        """Return what policies have to say: a user's function that failed, a gate without a plan."""
        speakers = [
            *(lane.router for group in self.fleet.groups for lane in group.lanes),
            *self.admissions,
        ]
        found = [getattr(speaker, "last_fault", "") for speaker in speakers]
        found += [getattr(speaker, "note", "") for speaker in speakers]
        return [note for note in found if note]

    def held(self) -> int:
        """Return the number of requests that admission holds."""
        return self.holding

    def reload(
        self, groups: list[Group], settings: Limits, admission_of: AdmissionOf, now_s: float
    ) -> None:
        """Go by other lanes: engines that stay keep their counters, requests that are held are
        offered anew, those under way go on."""
        waiting = []
        for admission in self.admissions:
            for flight in admission.waiting():
                flight.held = False
                admission.drop(flight)
                waiting.append(flight)
        self.holding -= len(waiting)
        kept = {id(engine) for group in groups for lane in group.lanes for engine in lane.engines}
        for engine in self.fleet.engines:
            if id(engine) not in kept and engine.lane is not None:
                engine.lane = None
                self.affinities.forget(engine.index)
        self.fleet.groups = groups
        self.models.learn(groups)
        self._adopt(settings)
        self._set_admissions(admission_of)
        for flight in tuple(self.flights.values()):
            flight.group = max(self.models.group_of(flight.exchange.model), 0)
        for flight in waiting:
            self.admissions[flight.group].offer(flight, now_s)

    # From the watch.

    def looked(self, now_s: float) -> None:
        """Take in that an engine has reported: others may have left seats."""
        self._look(now_s)

    def silent(self, engine: Engine, now_s: float) -> None:
        """Pass by an engine that neither reports nor begins answers, and ask others for those it
        owes."""
        self.health.doubt(engine)
        self.hedge_all(engine, now_s)

    def told_models(self, engine: Engine, names: Sequence[str], context: int | None) -> None:
        """Take in the names an engine answers to."""
        if engine.models != tuple(names) or engine.context_tokens != context:
            self.fleet.told_models(engine, names, context)
            self.models.learn(self.fleet.groups)

    def told_seats(self, engine: Engine, seats: int) -> None:
        """Take in how many requests an engine runs at once, where that is less than planned."""
        self.fleet.limit(engine, min(seats, engine.running_seats))

    # For admissions: see ``admission.Desk``.

    def place(self, flight: Flight, now_s: float) -> bool:
        """Route a request and send it; return whether an engine could take it."""
        group = self.fleet.groups[flight.group]
        exchange = flight.exchange
        lane = group.entry
        affinity = self.affinities.of(lane.router.policy.kind, exchange)
        engine = lane.choose(flight.request, exchange.model, affinity, flight.excluded, now_s)
        if engine is None:
            return False
        return self.send(flight, engine, now_s, _branch(lane, engine, affinity, exchange))

    def send(self, flight: Flight, engine: Engine, now_s: float, branch: str) -> bool:
        """Send a request to an engine, on to a decode engine if it only computes prompts; return
        whether there is one."""
        exchange = flight.exchange
        prefill = NOWHERE
        first = engine
        if engine.role == "prefill" and exchange.kind != OTHER:
            decode = self._decode_engine(flight, now_s)
            if decode is None:
                return False
            prefill, engine = engine.index, decode
        if flight.held:
            flight.held = False
            self.holding -= 1
        exchange.engine, exchange.prefill_engine = engine.index, prefill
        exchange.branch, exchange.sent_s = branch, now_s
        self.branches[branch] = self.branches.get(branch, 0) + 1
        self._join(flight, engine, now_s)
        if first is not engine:
            self._join(flight, first, now_s)
        if first.lane is not None:
            kind = first.lane.router.policy.kind
            self.affinities.remember(kind, exchange, first.index, prefixes=self._keeps_prefixes)
        self.admissions[flight.group].sent(flight, first, now_s)
        if self._hedging is not None and prefill == NOWHERE:
            self._hedging.add(flight, now_s)
        self.relay.send(exchange, engine.index, prefill)
        return True

    def hold(self, flight: Flight, now_s: float) -> bool:
        """Count a request as held; False if there is no room, and the request is refused."""
        if self.holding >= self.settings.max_queued:
            self.reject(flight, now_s)
            return False
        self.holding += 1
        flight.held = True
        self._waits.add(flight, now_s)
        return True

    def reject(self, flight: Flight, now_s: float) -> None:
        """Refuse a request for now, with a guess when to come again."""
        healthy = self.fleet.groups[flight.group].entry.healthy
        if flight.held:
            flight.held = False
            self.holding -= 1
            self.admissions[flight.group].drop(flight)
        flight.over = True
        self.flights.pop(flight.exchange, None)
        refusal = (
            busy(self.retry_after_s(now_s)) if healthy else unreachable(self.health.readmit_after_s)
        )
        self.relay.refuse(flight.exchange, refusal)

    def cached(self, flight: Flight) -> tuple[Engine | None, int]:
        """Return the engine that holds most of a prompt's prefix, and about how many tokens."""
        engine, tokens = self.affinities.cached(flight.exchange)
        return (self.fleet.engines[engine] if engine >= 0 else None), tokens

    def wake(self, when_s: float) -> None:
        """Have the admissions look at a time, sooner than any earlier wish."""
        if when_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = when_s
            self._timer = self.call_at(when_s, self._wakened, when_s)

    def retry_after_s(self, now_s: float) -> float:
        """Return the seconds until the requests held now are served, at the present rate."""
        return self.rate.wait_s(self.holding, now_s)

    def hedge(self, flight: Flight, now_s: float) -> None:
        """Ask a second engine for a request that has no first byte."""
        exchange = flight.exchange
        if _needs_no_hedge(flight) or exchange.prefill_engine != NOWHERE:
            return
        lane = self.fleet.groups[flight.group].entry
        asked = [*flight.excluded, *(engine.index for engine in flight.engines)]
        engine = lane.choose(flight.request, exchange.model, NOWHERE, asked, now_s)
        if engine is None:
            return
        flight.hedged = True
        self.hedges += 1
        self._join(flight, engine, now_s)
        self.relay.hedge(exchange, engine.index)

    def hedge_all(self, engine: Engine, now_s: float) -> None:
        """Ask other engines for all that one has not begun to answer."""
        for flight in [f for f in self.flights.values() if engine in f.engines]:
            self.hedge(flight, now_s)

    # Its own.

    def _decode_engine(self, flight: Flight, now_s: float) -> Engine | None:
        lane = self.fleet.groups[flight.group].decode
        if lane is None:
            return None
        exchange = flight.exchange
        affinity = self.affinities.of(lane.router.policy.kind, exchange)
        return lane.choose(flight.request, exchange.model, affinity, flight.excluded, now_s)

    def _join(self, flight: Flight, engine: Engine, now_s: float) -> None:
        flight.engines.append(engine)
        if not engine.prefilling:
            engine.asked_s = now_s
        engine.prefilling += 1
        self.fleet.charge(engine, 1, flight.tokens)

    def _leave(self, flight: Flight, engine: Engine, now_s: float) -> None:
        flight.engines.remove(engine)
        if flight.silent:
            engine.prefilling -= 1
        self.fleet.charge(engine, -1, -flight.tokens)
        self.admissions[flight.group].left(flight, engine, now_s)

    def _wait_again(self, flight: Flight, reason: str, now_s: float) -> bool:
        """Hold a request that no engine can take now; return whether it may hope."""
        lane = self.fleet.groups[flight.group].entry
        untried = [e for e in lane.engines if e.usable and e.index not in flight.excluded]
        if not untried:
            if lane.healthy:
                if reason != "busy":
                    return False
                self.wake(now_s + BUSY_PAUSE_S)
            flight.excluded.clear()
        self.admissions[flight.group].again(flight, now_s)
        return True

    def _look(self, now_s: float) -> None:
        if self.holding:
            for admission in self.admissions:
                admission.look(now_s)

    def _wakened(self, now_s: float) -> None:
        self._timer, self._timer_s = None, math.inf
        for admission in self.admissions:
            admission.look(now_s)

    def _returned(self, engine: Engine, now_s: float) -> None:
        self._look(now_s)


def _branch(lane: Lane, engine: Engine, affinity: int, exchange: Exchange) -> str:
    if exchange.tried:
        return "retry"
    if len(lane.engines) == 1:
        return "only"
    policy = lane.router.policy
    if policy.kind in (choice.PREFIX_AFFINITY, choice.SESSION_AFFINITY):
        return "affinity" if engine.index == affinity else "least-tokens"
    return policy.name


def _needs_no_hedge(flight: Flight) -> bool:
    return flight.over or flight.held or flight.hedged or not flight.silent


class _NoRelay:
    """Until the wire has set its own."""

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        raise RuntimeError("the dispatcher has no relay")

    def hedge(self, exchange: Exchange, engine: int) -> None:
        raise RuntimeError("the dispatcher has no relay")

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        raise RuntimeError("the dispatcher has no relay")
