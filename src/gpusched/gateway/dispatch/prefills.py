"""Which requests an engine computes the prompts of, as seen from outside.

The first byte of a stream says that its prompt is computed. An answer that is not streamed says so
only with its end, so there the predicted time counts.
"""

from typing import Protocol

from gpusched.gateway.dispatch.deadlines import CallAt, Timer
from gpusched.gateway.dispatch.engine_times import EngineTimes
from gpusched.gateway.dispatch.fleet import Engine
from gpusched.gateway.dispatch.flight import Flight


class Computed(Protocol):
    """Told once of each request that has left an engine's prefills."""

    def __call__(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a prompt is computed, or will not be."""
        ...


class Prefills:
    """Requests in prefill, by engine."""

    def __init__(self, times: EngineTimes, call_at: CallAt, computed: Computed) -> None:
        self.times = times
        self._call_at = call_at
        self._computed = computed
        self._at: dict[int, dict[Flight, tuple[float, bool, Timer | None]]] = {}

    def at(self, engine: Engine) -> list[Flight]:
        """Return the requests that an engine has not computed the prompts of."""
        return list(self._at.get(engine.index, ()))

    def count(self, engine: Engine) -> int:
        """Return their number."""
        return len(self._at.get(engine.index, ()))

    def sent(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request has been sent to an engine."""
        here = self._at.setdefault(engine.index, {})
        alone = not here
        timer = None
        if not self._tells(flight, engine):
            due_s = now_s + self.times.prefill_s(flight.request.prompt_tokens)
            timer = self._call_at(due_s, self._due, flight, engine, due_s)
        here[flight] = now_s, alone, timer

    def began(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in the first byte of an answer."""
        entry = self._at.get(engine.index, {}).get(flight)
        if entry is None:
            return
        sent_s, alone, _ = entry
        if alone and self._tells(flight, engine):
            self.times.learn(flight.request.prompt_tokens, max(now_s - sent_s, 1e-6))
        self.left(flight, engine, now_s)

    def left(self, flight: Flight, engine: Engine, now_s: float) -> None:
        """Take in that a request is no longer in prefill, for whatever reason."""
        entry = self._at.get(engine.index, {}).pop(flight, None)
        if entry is not None:
            if entry[2] is not None:
                entry[2].cancel()
            self._computed(flight, engine, now_s)

    @staticmethod
    def _tells(flight: Flight, engine: Engine) -> bool:
        """Whether a first byte comes when the prompt is computed."""
        return flight.exchange.stream or engine.role == "prefill"

    def _due(self, flight: Flight, engine: Engine, now_s: float) -> None:
        self.left(flight, engine, now_s)
