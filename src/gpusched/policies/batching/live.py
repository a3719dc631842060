"""The waiting requests of a live engine, in the order and behind the gate of a discipline.

The simulator's kernel keeps the same queues in flat arrays; both call the same functions: ``rank``,
``shortfall``, ``allowance`` and the user's own.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice, takewhile

import numpy as np

from gpusched.errors import InputError
from gpusched.policies.batching import order as orders
from gpusched.policies.batching.discipline import CUSTOM, GROUPED, LOOK_AHEAD, Discipline
from gpusched.policies.batching.estimation import Groups
from gpusched.policies.batching.groups import allowance, group_of_length, group_of_progress
from gpusched.policies.batching.lookahead import discard, insert, shortfall
from gpusched.policies.batching.on_time import SETS, next_on_time
from gpusched.policies.custom import Compiled
from gpusched.policies.views import Engine, Request

MOST_RESIDENTS = 4096


@dataclass(slots=True)
class _Entry:
    request: Request
    number: int
    """Place in the order of first arrival; breaks ties."""
    held_since_s: float
    rank: float = 0.0
    group: int = 0
    planned_end: int = 0
    planned_base: int = 0
    passed: int = 0
    """Times that on-time batching let another go first."""


class LiveQueue:
    """Decides which waiting request enters an engine next; the engine says whether it has room.

    ::

        queue.add("a", request, engine)
        for key in queue.candidates(engine, iteration, budget_tokens):
            if not room_for(key):
                break
            queue.start(key)

    A discipline that starts groups needs them; ``groups`` may be set anew at any time as an
    estimator learns, their number fixed. Groups of decode progress hold requests at the entry only:
    no engine pauses those that run. On-time batching needs ``prefill_s``, the predicted time of a
    request's prefill alone.
    """

    def __init__(
        self,
        policy: Discipline,
        kv_tokens: int,
        *,
        block_tokens: int = 16,
        groups: Groups | None = None,
        prefill_s: Callable[[Request], float] | None = None,
    ) -> None:
        if policy.gate == GROUPED and groups is None:
            raise InputError(f"batching policy {policy.name} needs groups, see GroupEstimator")
        if policy.window and prefill_s is None:
            raise InputError(
                f"batching policy {policy.name} needs prefill_s, the time of a prefill"
            )
        self.policy = policy
        self.prefill_s = prefill_s
        self.limit_tokens = int((1.0 - policy.margin) * (kv_tokens // block_tokens)) * block_tokens
        self.block_slack = block_tokens - 1
        self.groups = groups
        self.waiting: dict[Hashable, _Entry] = {}
        self.running: dict[Hashable, _Entry] = {}
        self._numbers: dict[Hashable, int] = {}
        self._next_number = 0
        self._line: deque[Hashable] = deque()
        self._heap: list[tuple[float, int, Hashable]] = []
        count = 1 if groups is None else len(groups.ends)
        self._lists: list[deque[Hashable]] = [deque() for _ in range(count)]
        self._sizes = [0] * count
        self._ends = np.zeros((1, MOST_RESIDENTS), np.int64)
        self._bases = np.zeros((1, MOST_RESIDENTS), np.int64)
        self._room = (np.zeros(SETS), np.zeros(SETS, np.int64), np.zeros(SETS))
        self._residents = 0
        self._iteration = 0
        self._budget = 0
        self._free_tokens = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def warm_up(self) -> None:
        """Have compiled what decisions call, so that the first request does not wait for it; the queue
        must be empty."""
        engine = Engine(0.0, 0, 2, self.limit_tokens, self.limit_tokens)
        keys = [object(), object()]
        for key in keys:
            self.add(key, Request(0.0, 1, 0, 2, 0), engine)
        for key in self.candidates(engine, 0, 4):
            self.start(key)
            self.prefilled(key, 1)
        for key in keys:
            if key in self.running:
                self.finish(key)
            else:
                self.cancel(key)

    def add(self, key: Hashable, request: Request, engine: Engine, *, front: bool = False) -> None:
        """Queue a request; ``front`` puts a preempted one before those of equal standing."""
        number = self._numbers.setdefault(key, self._next_number)
        self._next_number += int(number == self._next_number)
        entry = _Entry(request, number, request.arrival_s)
        self.waiting[key] = entry
        policy = self.policy
        if policy.gate == GROUPED:
            entry.group = self._group(request)
            _enter(self._lists[0 if self._by_progress else entry.group], key, front)
        elif policy.order == orders.FCFS:
            _enter(self._line, key, front)
        else:
            if policy.rank is not None:
                entry.rank = _ask(policy.rank, request, engine)
            else:
                entry.rank = orders.rank(
                    policy.order, policy.ageing_tokens_per_s, float(policy.quantum_tokens), request
                )
            heappush(self._heap, (entry.rank, entry.number, key))

    def candidates(self, engine: Engine, iteration: int, budget_tokens: int) -> Iterator[Hashable]:
        """Yield the requests that may start in an iteration, one after the other; the next one is
        only considered once the last one has been started.

        ``iteration`` counts the engine's iterations, ``budget_tokens`` is what is left of the
        iteration's token budget; ``start`` lessens it.
        """
        self._iteration, self._budget = iteration, budget_tokens
        self._free_tokens = engine.free_tokens
        if self.policy.gate == GROUPED:
            yield from self._group_candidates(engine.now_s)
            return
        if self.policy.window:
            yield from self._on_time_candidates(engine.now_s)
            return
        passed: list[Hashable] = []
        while self._budget > 0 and (key := self._pop_first()) is not None:
            if self._gate_open(self.waiting[key], engine):
                self._push_first(key)
                yield key
                if key in self.waiting:
                    break
            elif len(passed) < self.policy.skip and self._has_blocks(self.waiting[key]):
                passed.append(key)
            else:
                self._push_first(key)
                break
        for key in reversed(passed):
            self._push_first(key)

    def start(self, key: Hashable) -> None:
        """Move a candidate to the running requests."""
        entry = self.waiting.pop(key)
        self.running[key] = entry
        request = entry.request
        target = request.prompt_tokens + request.produced_tokens
        chunks = -(-target // self._budget)
        self._free_tokens -= self._held_at_once(entry)
        self._budget -= min(target, self._budget)
        if self.policy.gate == GROUPED:
            self._lists[0 if self._by_progress else entry.group].remove(key)
            self._sizes[entry.group] += 1
        elif self.policy.order == orders.FCFS:
            if self.policy.window:
                for other in takewhile(lambda other: other != key, self._line):
                    self.waiting[other].passed += 1
            self._line.remove(key)
        else:
            heappop(self._heap)
        self._expect(entry, target - (chunks - 1), _left(request) + chunks - 1)

    def prefilled(self, key: Hashable, iteration: int) -> None:
        """Note that a prompt is computed with the iteration before ``iteration``: from now on the
        prediction counts from there."""
        entry = self.running[key]
        request = entry.request
        held = request.prompt_tokens + request.produced_tokens
        self._forget(entry)
        self._iteration = iteration
        entry.request = request._replace(produced_tokens=request.produced_tokens + 1)
        self._expect(entry, held + 1, _left(entry.request))

    def progress(self, key: Hashable, produced_tokens: int) -> None:
        """Note the output tokens that a running request has given."""
        entry = self.running[key]
        entry.request = entry.request._replace(produced_tokens=produced_tokens)
        if self._by_progress:
            group = self._group(entry.request)
            self._sizes[entry.group] -= 1
            self._sizes[group] += 1
            entry.group = group

    def cancel(self, key: Hashable) -> None:
        """Forget a waiting request: the client has gone."""
        entry = self.waiting.pop(key)
        del self._numbers[key]
        if self.policy.gate == GROUPED:
            self._lists[0 if self._by_progress else entry.group].remove(key)
        elif self.policy.order == orders.FCFS:
            self._line.remove(key)
        else:
            self._heap.remove((entry.rank, entry.number, key))
            heapify(self._heap)

    def finish(self, key: Hashable) -> None:
        """Forget a running request: it has ended, or the client has gone."""
        self._leave(key)
        del self._numbers[key]

    def preempt(self, key: Hashable, engine: Engine) -> None:
        """Send a running request back to the queue; it keeps the tokens it has given unless the
        discipline restarts it."""
        request = self._leave(key).request
        predicted = max(request.predicted_tokens, request.produced_tokens + 1)
        produced = 0 if self.policy.restart else request.produced_tokens
        again = request._replace(predicted_tokens=predicted, produced_tokens=produced)
        self.add(key, again, engine, front=True)

    def standing(self, key: Hashable) -> tuple[float, int]:
        """Return where a running request stands; who comes last is preempted first where a discipline
        evicts by rank."""
        entry = self.running[key]
        return entry.rank, entry.number

    def release_s(self, now_s: float) -> float:
        """Return when the next held request may start though its group has not filled; infinite if
        none is held."""
        if self.groups is None:
            return np.inf
        releases = [
            self.waiting[held[0]].held_since_s + self.groups.hold_s for held in self._lists if held
        ]
        return min((s for s in releases if s > now_s), default=np.inf)

    @property
    def _by_progress(self) -> bool:
        return self.policy.name == "nested-wait"

    def _group(self, request: Request) -> int:
        assert self.groups is not None
        ends, count = self.groups.ends[None, :], len(self._lists)
        if self._by_progress:
            return int(group_of_progress(ends, 0, count, request.produced_tokens))
        return int(group_of_length(ends, 0, count, request.predicted_tokens))

    def _leave(self, key: Hashable) -> _Entry:
        entry = self.running.pop(key)
        if self.policy.gate == GROUPED:
            self._sizes[entry.group] -= 1
        self._forget(entry)
        return entry

    def _expect(self, entry: _Entry, tokens: int, iterations: int) -> None:
        if self.policy.gate == LOOK_AHEAD:
            entry.planned_end = self._iteration + iterations - 1
            entry.planned_base = tokens - self._iteration
            insert(
                self._ends, self._bases, 0, self._residents, entry.planned_end, entry.planned_base
            )
            self._residents += 1

    def _forget(self, entry: _Entry) -> None:
        if self.policy.gate == LOOK_AHEAD:
            discard(
                self._ends, self._bases, 0, self._residents, entry.planned_end, entry.planned_base
            )
            self._residents -= 1

    def _pop_first(self) -> Hashable | None:
        if self.policy.order == orders.FCFS:
            return self._line.popleft() if self._line else None
        return heappop(self._heap)[2] if self._heap else None

    def _push_first(self, key: Hashable) -> None:
        if self.policy.order == orders.FCFS:
            self._line.appendleft(key)
        else:
            entry = self.waiting[key]
            heappush(self._heap, (entry.rank, entry.number, key))

    def _gate_open(self, entry: _Entry, engine: Engine) -> bool:
        if self.policy.gate == CUSTOM:
            assert self.policy.admits is not None
            return _ask(self.policy.admits, entry.request, engine) > 0.0
        if self.policy.gate != LOOK_AHEAD or not self.running:
            return True
        target = entry.request.prompt_tokens + entry.request.produced_tokens
        chunks = -(-target // self._budget)
        last = self._iteration + _left(entry.request) + chunks - 2
        delay = shortfall(
            self._ends, self._bases, 0, self._residents, self._iteration, target - (chunks - 1),
            last, self.limit_tokens, self.block_slack,
        )  # fmt: skip
        return bool(delay == 0)

    def _has_blocks(self, entry: _Entry) -> bool:
        """Whether a request's blocks are free now: only who waits for what runs is passed over."""
        return self._held_at_once(entry) <= self._free_tokens

    def _held_at_once(self, entry: _Entry) -> int:
        new = min(entry.request.prompt_tokens + entry.request.produced_tokens, self._budget)
        return -(-new // (self.block_slack + 1)) * (self.block_slack + 1)

    def _on_time_candidates(self, now_s: float) -> Iterator[Hashable]:
        assert self.prefill_s is not None
        while self._budget > 0 and self._line:
            keys = list(islice(self._line, self.policy.window))
            entries = [self.waiting[key] for key in keys]
            first = next_on_time(
                np.array([self.prefill_s(entry.request) for entry in entries]),
                np.array([entry.request.arrival_s + self.policy.ttft_s for entry in entries]),
                np.array([entry.passed for entry in entries]),
                len(keys), self.policy.window, now_s, *self._room,
            )  # fmt: skip
            yield keys[first]
            if keys[first] in self.waiting:
                return

    def _group_candidates(self, now_s: float) -> Iterator[Hashable]:
        groups = self.groups
        assert groups is not None
        for g in range(1 if self._by_progress else len(self._lists)):
            held = self._lists[g]
            if not held:
                continue
            count = allowance(
                len(held), int(groups.thresholds[g]), int(groups.caps[g]) - self._sizes[g],
                self.policy.start == "strict", now_s, self.waiting[held[0]].held_since_s,
                groups.hold_s,
            )  # fmt: skip
            for _ in range(count):
                if self._budget <= 0 or len(self.running) >= groups.seats:
                    return
                key = held[0]
                yield key
                if key in self.waiting:
                    return


def _enter(line: deque[Hashable], key: Hashable, front: bool) -> None:
    if front:
        line.appendleft(key)
    else:
        line.append(key)


def _left(request: Request) -> int:
    return max(request.predicted_tokens - request.produced_tokens, 1)


def _ask(function: Compiled, request: Request, engine: Engine) -> float:
    """Call a user's function as it is.

    Raises:
        InputError: it raises, or gives no number.
    """
    seen = {"request": request, "engine": engine}
    try:
        answer = float(function.function(*(seen[v] for v in function.views), *function.parameters))
    except Exception as error:
        raise InputError(
            f"policy {function.name} raised {type(error).__name__}: {error} for {request}"
        ) from None
    if answer != answer:
        raise InputError(f"policy {function.name} returned {answer} for {request}")
    return answer
