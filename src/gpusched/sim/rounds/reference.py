"""Rounds of sessions in the slow reference, in plain Python: see ``sim.reference``."""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Mapping

from gpusched.policies.batching.order import FCFS
from gpusched.policies.routing.adaptive import ADAPTIVE, HOME
from gpusched.policies.routing.windowed import SLOTS
from gpusched.sim.fleet import Fleet
from gpusched.sim.reference import Reference
from gpusched.sim.reference_engine import Engine, Request
from gpusched.sim.simulate import ClosedLoop
from gpusched.traces.trace import Trace


class RoundsRequest(Request):
    """A round of a session, and what was done with it."""

    number: int = 0
    """Of its session."""
    relied: int = 0
    history: int = 0
    branch: int = 0
    evicted: bool = False
    predicted_s: float = 0.0
    shipping: bool = False
    continues: bool = False


class RoundsEngine(Engine):
    """An engine that keeps histories, if it decodes, and knows its queue and its latest latencies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.idle_histories: OrderedDict[int, int] = OrderedDict()
        """KV tokens by session, the least recently used first."""
        self.shipping_histories: dict[int, int] = {}
        self.bound: dict[int, int] = {}
        """Context of the sessions bound here."""
        self.queued: list[RoundsRequest] = []
        self.queue_s = 0.0
        self.evictions = 0
        self.observed: deque[tuple[float, float]] = deque()
        """Time and value of each latency."""

    def history_blocks(self, histories: Mapping[int, int]) -> int:
        """KV blocks of histories."""
        return sum(self.blocks_for(tokens) for tokens in histories.values())

    @property
    def available(self) -> int:
        """Blocks free or held by histories that may be evicted."""
        return super().available - self.history_blocks(self.shipping_histories)

    def allocate(self, request: Request, count: int) -> None:
        """Take blocks, evicting least recently used histories."""
        super().allocate(request, count)
        while (
            self.idle_histories
            and self.private
            + self.history_blocks(self.shipping_histories)
            + self.history_blocks(self.idle_histories)
            > self.kv_blocks
        ):
            self.idle_histories.popitem(last=False)
            self.evictions += 1

    def mean(self, now_s: float, window_s: float) -> tuple[float, int]:
        """Mean latency of the window that ends now, and how many there are."""
        last = int(now_s * SLOTS // window_s)
        values = [v for t, v in self.observed if last - SLOTS < int(t * SLOTS // window_s) <= last]
        return (sum(values) / len(values) if values else 0.0), len(values)

    def start(self, request: Request, budget: int, now_s: float) -> tuple[int, bool]:
        """Admit a request if it fits, with what it finds of its history."""
        assert isinstance(request, RoundsRequest)
        session = request.number
        own = 0
        if self.pool.role == "decode":
            if request.relied and self.idle_histories.get(session) != request.relied:
                request.relied = request.computed = 0
                request.evicted = True
            own = self.blocks_for(request.relied)
        received = self.pool.role == "decode" and request.computed > 0
        past = request.computed
        if self.pool.role == "decode" and not received:
            past = request.relied
        hits = 0
        if not past:
            hits = self.hits(request)
            past = min(hits * self.prefix_tokens, request.target - 1)
        new = min(request.target - past, budget)
        idle = sum(block in self.idle for block in request.blocks[:hits])
        needed = self.blocks_for(past + new) - hits * self.prefix_blocks - own
        if needed > self.available - idle * self.prefix_blocks - own:
            return 0, False
        if own:
            del self.idle_histories[session]
            request.private += own
            self.private += own
            request.relied = 0
        self.waiting.remove(request)
        self.running.append(request)
        self.hold(request, hits)
        self.allocate(request, needed)
        if request.admitted_s != request.admitted_s:
            request.admitted_s = now_s
            request.cached = past
        if received:
            self.decodes.append(request)
        else:
            self.chunks.append((request, past, new))
            request.computed = past + new
            self.register(request, request.computed)
        return new, False


class RoundsReference(Reference):
    """A simulation with placed rounds, one iteration at a time."""

    engine_type = RoundsEngine

    def __init__(
        self, fleet: Fleet, trace: Trace, closed_loop: ClosedLoop | None = None, seed: int = 0
    ) -> None:
        super().__init__(fleet, trace, closed_loop, seed)
        chained = trace.think_s is not None and trace.round is not None
        for request in self.requests:
            request.__class__ = RoundsRequest
            own = request.session if chained else None
            round_of(request).number = request.index if own is None else own
        for request in self.requests:
            if request.follower is not None:
                context = request.prompt + request.output
                round_of(request.follower).continues = request.follower.prompt >= context
        self.homes: dict[int, RoundsEngine] = {}

    def look_at_pending(self, request: Request, now_s: float) -> None:
        """End the shipping of a history, or what else was put off."""
        if round_of(request).shipping:
            self.take_history(round_of(request), now_s)
        else:
            super().look_at_pending(request, now_s)

    def enter(self, request: Request, now_s: float) -> None:
        """Bind a session and place a round's prefill."""
        request = round_of(request)
        session = request.number
        if session not in self.homes:
            self.homes[session] = self.bind(now_s)
        home = self.homes[session]
        home.bound.pop(session, None)
        if home.blocks_for(request.final_tokens) > home.kv_blocks:
            self.let_go(home, session, now_s)
            self.reject(request, now_s)
            return
        if not request.continues:
            self.let_go(home, session, now_s)
        elif session not in home.idle_histories:
            request.evicted = True
        home.bound[session] = request.prompt + self.expected_output
        request.history = request.relied = home.idle_histories.get(session, 0)
        engine = self.place_round(home, request, now_s)
        request.predicted_s = engine.prefill_s(request.prompt - request.history, request.history)
        engine.queued.append(request)
        engine.queue_s += request.predicted_s
        self.count(engine, request, 1)
        if request.history:
            home.idle_histories.move_to_end(session)
        if engine is home or not request.history:
            self.enqueue(engine, request, now_s)
            return
        home.shipping_histories[session] = home.idle_histories.pop(session)
        link = self.fleet.link
        begin_s = max(now_s, home.send_free_s, engine.receive_free_s)
        end_s = begin_s + link.latency_s + link.token_s * request.history
        home.send_free_s = engine.receive_free_s = end_s
        request.shipping = True
        request.destination = engine
        insort(self.pending, (end_s, request.index))

    def bind(self, now_s: float) -> RoundsEngine:
        """The decode engine of least memory use."""
        engines = [engine_of(e) for e in self.decode]
        started = [e for e in engines if e.pool.startup_s <= now_s]
        if not started:
            return min(engines, key=lambda e: e.pool.startup_s)
        return min(
            started,
            key=lambda e: sum(e.bound.values()) / float(e.kv_blocks * e.pool.block_tokens),
        )

    def place_round(self, home: RoundsEngine, request: RoundsRequest, now_s: float) -> RoundsEngine:
        """AMPD's rule."""
        policy, link = self.routing, self.fleet.link
        history, new = request.history, request.prompt - request.history

        def ships_s(tokens: int) -> float:
            return link.latency_s + tokens * link.token_s if tokens else 0.0

        def ready_s(engine: RoundsEngine) -> float:
            return engine.queue_s + max(engine.pool.startup_s - now_s, 0.0)

        predicted = {
            e: max(ready_s(e), ships_s(history)) + e.prefill_s(new, history) + ships_s(new)
            for e in map(engine_of, self.entry)
            if e.blocks_for(request.prompt) <= e.kv_blocks
        }
        if not predicted:
            request.branch = 1
            return home
        away = min(predicted, key=lambda e: predicted[e])
        if policy.rule != ADAPTIVE:
            stays = policy.rule == HOME and history > 0
            request.branch = 1 if stays else 2
            return home if stays else away
        alone_s = home.prefill_s(new, history)
        local_s = ready_s(home) + alone_s
        ttft_s, _ = away.mean(now_s, policy.window_s)
        itl_s, tokens = home.mean(now_s, policy.window_s)
        held_up_s = home.queue_s + alone_s
        extra_s = held_up_s if home.decodes else 0.0
        if tokens:
            extra_s = held_up_s * len(home.decodes) / tokens
        else:
            itl_s = float(home.timing.decode_s[1])
        decode_well = itl_s <= policy.beta * policy.itl_s and itl_s + extra_s <= policy.itl_s
        prefill_well = ttft_s <= policy.alpha * policy.ttft_s
        sooner = local_s <= predicted[away]
        if decode_well and (not prefill_well or sooner):
            request.branch = 1
        elif prefill_well or predicted[away] <= policy.ttft_s:
            request.branch = 2
        else:
            request.branch = 3 if sooner else 4
        return home if request.branch in (1, 3) else away

    def let_go(self, home: RoundsEngine, session: int, now_s: float) -> None:
        """Give up a history."""
        if home.idle_histories.pop(session, None) is not None and home.waiting:
            self.wake(home, now_s)

    def take_history(self, request: RoundsRequest, now_s: float) -> None:
        """End the shipping of a history; the round takes its place in the queue."""
        session, engine = request.number, engine_of(request.destination)
        home = self.homes[session]
        request.shipping = False
        home.idle_histories[session] = home.shipping_histories.pop(session)
        if home.waiting:
            self.wake(home, now_s)
        request.computed = request.history
        self.enqueue(engine, request, now_s)
        queue = engine.waiting
        later = [r.arrival_s > request.arrival_s for r in queue]
        if engine.policy.order == FCFS and len(queue) > 1 and later[-2]:
            queue.pop()
            queue.insert(later.index(True), request)

    def give_token(self, engine: Engine, request: Request, now_s: float) -> None:
        """Count one token, and note its latency."""
        engine, request = engine_of(engine), round_of(request)
        if request in engine.active and engine.pool.role == "decode":
            engine.observed.append((now_s, now_s - request.last_token_s))
        elif request.produced == 0:
            engine.queued.remove(request)
            engine.queue_s -= request.predicted_s
            if not engine.queued:
                engine.queue_s = 0.0
            if engine.pool.role == "prefill":
                engine.observed.append((now_s, now_s - request.arrival_s))
        super().give_token(engine, request, now_s)

    def decode_engine(self, engine: Engine, request: Request, now_s: float) -> Engine | None:
        """The engine that the session is bound to."""
        return None if engine.pool.role == "decode" else self.homes[round_of(request).number]

    def shipped_tokens(self, target: Engine, request: Request) -> int:
        """What the decode engine lacks."""
        request = round_of(request)
        if request.relied and request.number not in engine_of(target).idle_histories:
            request.relied = 0
            request.evicted = True
        return request.computed - request.relied

    def complete(self, engine: Engine, request: Request, now_s: float) -> None:
        """Finish a round and keep its history."""
        super().complete(engine, request, now_s)
        session = round_of(request).number
        home = self.homes[session]
        home.bound.pop(session, None)
        if request.follower is None:
            self.let_go(home, session, now_s)
            return
        if engine is home:
            home.idle_histories[session] = request.final_tokens
        elif not round_of(request).relied and session not in home.idle_histories:
            round_of(request.follower).continues = False
        home.bound[session] = home.idle_histories.get(session, 0)


def engine_of(engine: Engine | None) -> RoundsEngine:
    """An engine as what it is here."""
    assert isinstance(engine, RoundsEngine)
    return engine


def round_of(request: Request) -> RoundsRequest:
    """A request as what it is here."""
    assert isinstance(request, RoundsRequest)
    return request
