"""Gate-and-Route in front of live engines: one prefill an engine, classes at a plan's occupancy.

The functions are those of ``policies.admission.gate``, as in the simulator. What the simulator knows
of an engine is seen here by first bytes: a prefill slot is idle when none of our requests there
waits for one.
"""

from gpusched.errors import GpuschedError
from gpusched.gateway.dispatch.admission import Desk, stands_apart
from gpusched.gateway.dispatch.deadlines import CallAt
from gpusched.gateway.dispatch.engine_times import EngineTimes
from gpusched.gateway.dispatch.fleet import Engine, Group
from gpusched.gateway.dispatch.flight import Flight, WaitingLine
from gpusched.gateway.dispatch.prefills import Prefills
from gpusched.policies.admission.fluid import fluid_plan
from gpusched.policies.admission.live_gate import ClassRates, LiveGate
from gpusched.policies.admission.policy import AdmissionPolicy
from gpusched.policies.admission.service import Prices

REPLAN_S = 10.0
"""Between two plans."""


class Gated:
    """Holds requests by class until a prefill slot is given to their class."""

    uses_prefixes = False

    def __init__(
        self,
        desk: Desk,
        group: Group,
        policy: AdmissionPolicy,
        names: tuple[str, ...],
        times: EngineTimes,
        call_at: CallAt,
    ) -> None:
        self.desk, self.group, self.policy = desk, group, policy
        self.lines = [WaitingLine() for _ in names]
        self.gate = LiveGate(policy.gate, len(names), policy.burst)
        self.rates = ClassRates(names)
        self.times = times
        self.prefills = Prefills(times, call_at, self._computed)
        self.plans = 0
        self.note = ""
        """Why there is no plan, if there should be one."""
        self._planned_s = float("-inf")
        self._opening = False

    def offer(self, flight: Flight, now_s: float) -> None:
        """Hold a new request and open the gate as far as there are slots."""
        if stands_apart(flight, self.group) and self.desk.place(flight, now_s):
            return
        request = flight.request
        self.rates.observe(
            self._class(flight), request.prompt_tokens, request.predicted_tokens, now_s
        )
        if now_s - self._planned_s >= REPLAN_S:
            self._plan(now_s)
        self.again(flight, now_s)
        self.look(now_s)

    def again(self, flight: Flight, now_s: float) -> None:
        """Hold a request."""
        if self.desk.hold(flight, now_s):
            self.lines[self._class(flight)].push(flight)
            self._note(self._class(flight))

    def look(self, now_s: float) -> None:
        """Let held requests in while there are slots for them."""
        if self._opening:
            return
        self._opening = True
        try:
            while (engine := self._idle()) is not None:
                idle = not any(e.requests or e.others for e in self.group.entry.engines)
                chosen = self.gate.next(now_s, idle=idle)
                if chosen < 0:
                    wait_s = self.gate.next_s(now_s)
                    if wait_s < float("inf"):
                        self.desk.wake(wait_s)
                    return
                flight = self.lines[chosen].first()
                if flight is None or not self.desk.send(flight, engine, now_s, self.policy.name):
                    return
                self.lines[chosen].take(flight)
                self._note(chosen)
        finally:
            self._opening = False

    def drop(self, flight: Flight) -> None:
        """Forget a held request."""
        self.lines[self._class(flight)].take(flight)
        self._note(self._class(flight))

    def sent(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request has a prefill slot."""
        self.gate.in_prefill[self._class(flight)] += 1
        self.prefills.sent(flight, engine, now_s)

    def began(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in the first byte: the slot is idle again."""
        self.prefills.began(flight, engine, now_s)
        self.look(now_s)

    def left(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request is gone from an engine."""
        self.prefills.left(flight, engine, now_s)

    def waiting(self) -> list[Flight]:
        """Return the held requests in the order they came."""
        held = [flight for line in self.lines for flight in line.ordered()]
        return sorted(held, key=lambda flight: flight.number)

    def _class(self, flight: Flight) -> int:
        # After a reload there may be fewer.
        return min(flight.exchange.slo_class, len(self.lines) - 1)

    def _idle(self) -> Engine | None:
        """The engine of the fewest outstanding tokens among those with an idle prefill slot and a
        seat."""
        best = None
        tokens = self.group.entry.router.load_tokens
        for engine in self.group.entry.engines:
            able = engine.usable and not engine.silent and engine.requests < engine.running_seats
            if not able or self.prefills.count(engine):
                continue
            if best is None or tokens[engine.position] < tokens[best.position]:
                best = engine
        return best

    def _computed(self, flight: Flight, engine: Engine, now_s: float) -> None:
        self.gate.in_prefill[self._class(flight)] -= 1
        if not flight.exchange.stream:
            self.look(now_s)

    def _note(self, i: int) -> None:
        line = self.lines[i]
        self.gate.waiting[i] = len(line)
        first = line.first()
        if first is not None:
            self.gate.head_arrival_s[i] = first.request.arrival_s

    def _plan(self, now_s: float) -> None:
        replicas = max(self.group.entry.healthy, 1)
        numbers, classes = self.rates.classes(now_s, replicas)
        if not classes:
            return
        self._planned_s = now_s
        prices = Prices(self.policy.prompt_price, self.policy.output_price)
        try:
            plan = fluid_plan(classes, self.times.server(classes), prices)
        except GpuschedError as error:
            self.note = str(error)
            return
        self.note = ""
        self.plans += 1
        self.gate.follow(plan, replicas, numbers)
