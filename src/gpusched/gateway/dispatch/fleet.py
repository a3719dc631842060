"""The live engines: what is outstanding on each, and which of them takes a request.

Engines that stand for one another (same model, same part of the work) make a lane: the candidates
of a routing policy, in arrays that the policy reads. An engine's load is what this gateway has sent
and what others have: the requests it reports beyond our own. An engine keeps its index for good.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpusched.engines.state import EngineState
from gpusched.gateway.exchange import EngineStatus
from gpusched.policies.routing.live import LiveRouter
from gpusched.policies.views import Request

SLOW_START_S = 10.0
LEAST_SHARE = 0.125
"""An engine that comes back is a candidate of this share of the decisions at first, of all after
``SLOW_START_S``."""
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_SMOOTHING = 0.02


@dataclass(slots=True, eq=False)
class Engine:
    """One live engine."""

    index: int
    name: str
    pool: str
    url: str
    role: str = "mixed"
    """``mixed``, ``prefill`` or ``decode``."""
    dialect: str = "auto"
    api_key: bytes | None = None
    seats: int = 512
    """Requests it is sent at most: those it runs and as many that wait, so that it never idles."""
    running_seats: int = 256
    """Requests it runs at once."""
    lane: "Lane | None" = None
    """None once it has left the plan."""
    position: int = 0
    """In its lane."""
    models: tuple[str, ...] | None = None
    """Names it answers to; None until it has said."""
    context_tokens: int | None = None
    """Longest prompt with its answer."""
    requests: int = 0
    """Our own, outstanding."""
    tokens: int = 0
    """Of these: prompts and expected answers."""
    prefilling: int = 0
    """Of these: without a first byte."""
    others: int = 0
    """Requests of others."""
    full: bool = False
    out: bool = False
    """Ejected."""
    silent: bool = False
    """Neither metrics nor first bytes come though work is waiting."""
    back_s: float = -math.inf
    """When it was readmitted."""
    failures: int = 0
    """In a row."""
    cuts: int = 0
    """Answers in a row that broke off."""
    ejections: int = 0
    setbacks: int = 0
    """Probes failed since it was ejected."""
    next_probe_s: float = math.inf
    last_sign_s: float = -math.inf
    """Last first byte or end of an answer."""
    asked_s: float = -math.inf
    """When it was sent the first of the requests that have no first byte, or one before it."""
    state: EngineState | None = None
    state_s: float = -math.inf
    """When it last reported."""

    @property
    def usable(self) -> bool:
        """Whether it takes requests."""
        return self.lane is not None and not self.out

    @property
    def status(self) -> EngineStatus:
        """What metrics and status page show of it."""
        state = self.state or EngineState()
        return EngineStatus(
            url=self.url,
            pool=self.pool,
            role=self.role,
            models=self.models or (),
            up=self.usable,
            ejected=self.out,
            ejections=self.ejections,
            outstanding=self.requests,
            outstanding_tokens=float(self.tokens),
            running=state.running,
            waiting=state.waiting,
            kv_usage=state.kv_usage,
        )


@dataclass(eq=False)
class Lane:
    """Engines that stand for one another, and the policy that chooses among them."""

    engines: list[Engine]
    router: LiveRouter
    full: int = 0
    """Engines that have all they are sent at most."""
    healthy: int = 0
    doubtful: set[int] = field(default_factory=set)
    """Positions of engines that start slowly or are silent."""
    partial: set[str] = field(default_factory=set)
    """Models that only some of the engines have."""
    masked_s: "np.ndarray[tuple[int], np.dtype[np.float64]]" = field(init=False)

    def __post_init__(self) -> None:
        self.masked_s = np.zeros(len(self.engines))
        self.healthy = 0
        for position, engine in enumerate(self.engines):
            engine.lane, engine.position = self, position
            router = self.router
            router.load_requests[position] = engine.requests + engine.others
            router.load_tokens[position] = engine.tokens
            router.ready_s[position] = math.inf if engine.out else -math.inf
            engine.full = engine.requests + engine.others >= engine.seats
            self.full += engine.full
            self.healthy += not engine.out
            if engine.silent or engine.back_s > -math.inf:
                self.doubtful.add(position)
            if engine.state is not None and engine.state.kv_tokens is not None:
                router.kv_tokens[position] = engine.state.kv_tokens
        self.note_models()

    def note_models(self) -> None:
        """Find which models only some of the engines have."""
        told = [set(engine.models) for engine in self.engines if engine.models is not None]
        named = {name for names in told for name in names}
        self.partial = {name for name in named if not all(name in names for names in told)}

    def choose(
        self, request: Request, model: str, affinity: int, excluded: Sequence[int], now_s: float
    ) -> Engine | None:
        """Return the engine that takes a request; None if none can now.

        ``affinity`` is the index of an engine or -1. Engines ``excluded``, full ones and those
        without the model are left out; those that start slowly or are silent, while there are
        others.
        """
        if not self.healthy:
            return None
        place = -1
        if affinity >= 0:
            place = next((e.position for e in self.engines if e.index == affinity), -1)
        router = self.router
        if not (excluded or self.full or self.doubtful or model in self.partial):
            engine = self.engines[router.choose(request, place, now_s)]
            return engine if engine.usable else None
        masked = self.masked_s
        masked[:] = router.ready_s
        able = 0
        for engine in self.engines:
            if engine.full or engine.index in excluded or not _has(engine, model):
                masked[engine.position] = math.inf
            able += masked[engine.position] <= now_s
        if not able:
            return None
        for position in sorted(self.doubtful):
            if able > 1 and masked[position] <= now_s and self._spared(position, now_s):
                masked[position] = math.inf
                able -= 1
        return self.engines[router.choose(request, place, now_s, masked)]

    def _spared(self, position: int, now_s: float) -> bool:
        """Whether an engine in doubt is left out of a decision."""
        engine = self.engines[position]
        if engine.silent:
            return True
        share = LEAST_SHARE + (1.0 - LEAST_SHARE) * (now_s - engine.back_s) / SLOW_START_S
        if share >= 1.0:
            self.doubtful.discard(position)
            return False
        # Multiples of the golden ratio spread evenly over a unit's length.
        draw = (self.router.turn * GOLDEN) % 1.0
        return draw >= share


def _has(engine: Engine, model: str) -> bool:
    return model not in (engine.lane.partial if engine.lane else ()) or (
        engine.models is not None and model in engine.models
    )


@dataclass(slots=True, eq=False)
class Group:
    """The lanes of one model."""

    model: str
    """As the plan calls it."""
    aliases: tuple[str, ...]
    """Further names that clients may use."""
    entry: Lane
    """Where requests enter: for all of the work, or for the prefill."""
    decode: Lane | None = None
    """Where a request goes on whose prefill has an engine of its own."""

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Its lanes, the entry first."""
        return (self.entry,) if self.decode is None else (self.entry, self.decode)


class Fleet:
    """All engines, those that are leaving included."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.groups: list[Group] = []
        self.mean_tokens = 512.0
        """Of a request."""
        self.on_return: Callable[[Engine, float], None] = _nothing
        """Called when an engine is readmitted."""

    def charge(self, engine: Engine, requests: int, tokens: int) -> None:
        """Count work in, or, negative, out."""
        engine.requests += requests
        engine.tokens += tokens
        if requests > 0:
            self.mean_tokens += _SMOOTHING * (tokens - self.mean_tokens)
        lane = engine.lane
        if lane is not None:
            lane.router.charge(engine.position, requests, tokens)
            self._note_full(engine, lane)

    def report(
        self, engine: Engine, state: EngineState, now_s: float, own: float | None = None
    ) -> None:
        """Take in what an engine says.

        ``own`` is how many requests of ours it can have known of, by default those outstanding.
        """
        engine.state = state
        engine.state_s = now_s
        requests = state.requests
        if requests is not None:
            self._set_others(
                engine, max(round(requests - (engine.requests if own is None else own)), 0)
            )
        if state.kv_tokens is not None and engine.lane is not None:
            engine.lane.router.kv_tokens[engine.position] = state.kv_tokens

    def no_report(self, engine: Engine) -> None:
        """Go by our own counts alone: the engine's have not come for long."""
        if engine.others:
            self._set_others(engine, 0)

    def limit(self, engine: Engine, running_seats: int) -> None:
        """Send an engine so many requests to run, and as many to wait, at most."""
        engine.running_seats = running_seats
        engine.seats = 2 * running_seats
        if engine.lane is not None:
            self._note_full(engine, engine.lane)

    def told_models(
        self, engine: Engine, models: Sequence[str], context_tokens: int | None
    ) -> None:
        """Take in the names an engine answers to."""
        engine.models = tuple(models)
        engine.context_tokens = context_tokens
        if engine.lane is not None:
            engine.lane.note_models()

    def _set_others(self, engine: Engine, others: int) -> None:
        engine.others = others
        lane = engine.lane
        if lane is not None:
            router, i = lane.router, engine.position
            router.load_requests[i] = engine.requests + others
            router.load_tokens[i] = engine.tokens + round(others * self.mean_tokens)
            self._note_full(engine, lane)

    def _note_full(self, engine: Engine, lane: Lane) -> None:
        full = engine.requests + engine.others >= engine.seats
        if full is not engine.full:
            engine.full = full
            lane.full += 1 if full else -1


def _nothing(engine: Engine, now_s: float) -> None:
    pass
