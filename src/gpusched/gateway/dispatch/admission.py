"""When a request may go to an engine: at once, while an engine has a seat.

Other ways to admit are in files of their own and have the same methods. Each lane's group has one
admission; all hold requests through the dispatcher, which bounds their number and their wait.
"""

from typing import Protocol

from gpusched.gateway.dispatch.fleet import Engine, Group
from gpusched.gateway.dispatch.flight import Flight, WaitingLine
from gpusched.gateway.exchange import OTHER


class Desk(Protocol):
    """What an admission may do with a request."""

    def place(self, flight: Flight, now_s: float) -> bool:
        """Route a request and send it, which ends its being held; return whether an engine could
        take it."""
        ...

    def send(self, flight: Flight, engine: Engine, now_s: float, branch: str) -> bool:
        """Send a request to an engine that the admission has chosen; return whether it could be,
        which it cannot where no decode engine is free to go on."""
        ...

    def hold(self, flight: Flight, now_s: float) -> bool:
        """Count a request as held; False if there is no room, and the request is refused."""
        ...

    def reject(self, flight: Flight, now_s: float) -> None:
        """Refuse a request for now: it would have to wait too long."""
        ...

    def cached(self, flight: Flight) -> tuple[Engine | None, int]:
        """Return the engine that holds most of a prompt's prefix, and about how many tokens."""
        ...

    def wake(self, when_s: float) -> None:
        """Have ``look`` called at a time, sooner than any earlier wish."""
        ...


class Admission(Protocol):
    """Decides when requests go to engines."""

    uses_prefixes: bool
    """Whether it asks the desk for what is ``cached``."""

    def offer(self, flight: Flight, now_s: float) -> None:
        """Take in a new request."""
        ...

    def again(self, flight: Flight, now_s: float) -> None:
        """Take in a request that could not be sent on after a failure."""
        ...

    def look(self, now_s: float) -> None:
        """Send what may go now: work has ended, an engine has come back, or the time has come."""
        ...

    def drop(self, flight: Flight) -> None:
        """Forget a held request."""
        ...

    def sent(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request has been sent."""
        ...

    def began(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in the first byte of an answer."""
        ...

    def left(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request is no longer outstanding at an engine."""
        ...

    def waiting(self) -> list[Flight]:
        """Return the held requests in the order in which they would go."""
        ...


def stands_apart(flight: Flight, group: Group) -> bool:
    """Whether a request is none that admission plans for: not a generation, or not for any engine
    of the lane."""
    exchange = flight.exchange
    apart = exchange.kind == OTHER or flight.excluded
    return bool(apart) or exchange.model in group.entry.partial


class AtOnce:
    """Every request goes to an engine at once, as in the simulator without admission.

    An engine is sent at most as many requests as it runs at once, and as many again to wait; the
    rest waits here, by priority.
    """

    uses_prefixes = False

    def __init__(self, desk: Desk, group: Group) -> None:
        self.desk = desk
        self.group = group
        self.line = WaitingLine()

    def offer(self, flight: Flight, now_s: float) -> None:
        """Send a new request, or hold it behind others."""
        if not len(self.line) and self.desk.place(flight, now_s):
            return
        if self.desk.hold(flight, now_s):
            self.line.push(flight)
            if len(self.line) > 1:
                self.look(now_s)

    def again(self, flight: Flight, now_s: float) -> None:
        """Hold a request that has failed elsewhere."""
        if self.desk.hold(flight, now_s):
            self.line.push(flight)

    def look(self, now_s: float) -> None:
        """Send those first in line while there are seats."""
        while (flight := self.line.first()) is not None:
            if not self.desk.place(flight, now_s):
                return
            self.line.take(flight)

    def drop(self, flight: Flight) -> None:
        """Forget a held request."""
        self.line.take(flight)

    def sent(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Nothing to note."""

    def began(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Nothing to note."""

    def left(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Nothing to note."""

    def waiting(self) -> list[Flight]:
        """Return the held requests in order."""
        return self.line.ordered()
