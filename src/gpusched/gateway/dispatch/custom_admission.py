"""Admission by a user's own function: seconds to hold a request before it is asked again."""

import math

from gpusched.gateway.dispatch.admission import AtOnce, Desk
from gpusched.gateway.dispatch.fleet import Engine, Group
from gpusched.gateway.dispatch.flight import Flight
from gpusched.gateway.exchange import OTHER
from gpusched.policies.custom import Compiled
from gpusched.policies.views import Fleet

LEAST_HOLD_S = 0.001
"""Shortest time before a function is asked again."""


class Asked:
    """Holds, admits or rejects as a function says; what it admits goes to an engine at once.

    A call that raises or gives no number admits, and counts as a fault.
    """

    uses_prefixes = False

    def __init__(self, desk: Desk, group: Group, hold: Compiled) -> None:
        self.desk, self.group, self.function = desk, group, hold
        self.admitted = AtOnce(desk, group)
        self.faults = 0
        self.last_fault = ""
        self._asking: dict[Flight, float] = {}
        """Requests put off, and when they are asked for again."""

    def offer(self, flight: Flight, now_s: float) -> None:
        """Ask for a new request."""
        if flight.exchange.kind == OTHER:
            self.admitted.offer(flight, now_s)
            return
        hold_s = self.hold_s(flight, now_s)
        if hold_s == math.inf:
            self.desk.reject(flight, now_s)
        elif hold_s <= 0.0:
            self.admitted.offer(flight, now_s)
        elif self.desk.hold(flight, now_s):
            self._put_off(flight, now_s + max(hold_s, LEAST_HOLD_S))

    def again(self, flight: Flight, now_s: float) -> None:
        """Hold a request that was admitted before."""
        self.admitted.again(flight, now_s)

    def look(self, now_s: float) -> None:
        """Send those admitted, and ask for those whose time has come."""
        self.admitted.look(now_s)
        for flight in [f for f, due_s in self._asking.items() if due_s <= now_s]:
            if flight not in self._asking:
                continue
            hold_s = self.hold_s(flight, now_s)
            if hold_s == math.inf:
                self.desk.reject(flight, now_s)
            elif hold_s <= 0.0:
                del self._asking[flight]
                self.admitted.line.push(flight)
                self.admitted.look(now_s)
            else:
                self._put_off(flight, now_s + max(hold_s, LEAST_HOLD_S))
        if self._asking:
            self.desk.wake(min(self._asking.values()))

    def drop(self, flight: Flight) -> None:
        """Forget a held request."""
        if self._asking.pop(flight, None) is None:
            self.admitted.drop(flight)

    def sent(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Nothing to note."""

    def began(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Nothing to note."""

    def left(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Nothing to note."""

    def waiting(self) -> list[Flight]:
        """Return the held requests, those admitted first."""
        put_off = sorted(self._asking, key=lambda flight: flight.number)
        return self.admitted.waiting() + put_off

    def hold_s(self, flight: Flight, now_s: float) -> float:
        """Return what the function says of a request now."""
        router = self.group.entry.router
        requests, tokens = int(router.load_requests.sum()), int(router.load_tokens.sum())
        if self.group.decode is not None:
            requests += int(self.group.decode.router.load_requests.sum())
            tokens += int(self.group.decode.router.load_tokens.sum())
        fleet = Fleet(now_s, len(router), requests, tokens)
        seen = {"request": flight.request, "fleet": fleet}
        function = self.function
        try:
            hold_s = float(
                function.function(*(seen[v] for v in function.views), *function.parameters)
            )
        except Exception as error:
            self.last_fault = f"policy {function.name} raised {type(error).__name__}: {error}"
        else:
            if hold_s == hold_s:
                return hold_s
            self.last_fault = f"policy {function.name} returned nan"
        self.faults += 1
        return 0.0

    def _put_off(self, flight: Flight, due_s: float) -> None:
        self._asking[flight] = due_s
        self.desk.wake(due_s)
