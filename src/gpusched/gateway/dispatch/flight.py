"""A request on its way, as the dispatcher sees it, and the line of those that are held."""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from gpusched.gateway.dispatch.fleet import Engine
from gpusched.gateway.exchange import Exchange
from gpusched.policies.views import Request


@dataclass(slots=True, eq=False)
class Flight:
    """One request, held or sent."""

    exchange: Exchange
    group: int
    number: int
    """Place in the order of arrival."""
    request: Request
    """What policies see of it."""
    tokens: int
    """By which it counts among an engine's outstanding ones."""
    engines: list[Engine] = field(default_factory=list)
    """Where it is outstanding now: one, two when hedged or when its prefill is apart."""
    excluded: list[int] = field(default_factory=list)
    """Engines that it is not sent to again."""
    held: bool = False
    silent: bool = True
    """No first byte yet."""
    hedged: bool = False
    over: bool = False
    mark: int = 0
    """The admission policy's own: a class, a batch."""


class WaitingLine:
    """Held requests: lower priority first, then the class listed first, then first come."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, Flight]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, flight: Flight) -> None:
        """Add a request."""
        exchange = flight.exchange
        heappush(self._heap, (exchange.priority, exchange.slo_class, flight.number, flight))
        self._count += 1

    def first(self) -> Flight | None:
        """Return the next request; it stays in line."""
        heap = self._heap
        while heap and not heap[0][3].held:
            heappop(heap)
        return heap[0][3] if heap else None

    def take(self, flight: Flight) -> None:
        """Take a request out that has been sent, refused or given up, and is no longer ``held``."""
        self._count -= 1
        if self._heap and self._heap[0][3] is flight:
            heappop(self._heap)
        elif len(self._heap) > 2 * self._count + 16:
            self._heap = sorted(entry for entry in self._heap if entry[3].held)

    def pop(self) -> None:
        """Take the first request out, which stays held elsewhere."""
        heappop(self._heap)
        self._count -= 1

    def ordered(self) -> list[Flight]:
        """Return the requests in the order in which they go."""
        return [entry[3] for entry in sorted(self._heap) if entry[3].held]
