"""A routing policy over live replicas: the simulator's functions on counters that a gateway keeps."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import compiled_for
from gpusched.errors import InputError
from gpusched.policies.custom import Compiled
from gpusched.policies.routing import choice
from gpusched.policies.routing.iwrr import LEAST_SHARE, carried_loads
from gpusched.policies.routing.live_kernels import place_one, route_one, weigh_one
from gpusched.policies.routing.policy import RoutingPolicy
from gpusched.policies.views import Replica, Request

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class LiveRouter:
    """Chooses among ``count`` replicas, numbered from 0; the caller keeps the arrays up to date.

    ``load_requests`` and ``load_tokens`` are what is outstanding on each, ``ready_s`` the time from
    which it may be used (infinite: not at all), ``kv_tokens`` its capacity (infinite if unknown).
    A user's function that fails is replaced by least tokens for that decision, and counted in
    ``faults``.
    """

    def __init__(self, policy: RoutingPolicy, count: int, seed: int = 0) -> None:
        if policy.kind == choice.PER_ROUND:
            raise InputError(
                f"routing {policy.name} follows the rounds of sessions inside the simulator and has "
                "no live form; use session-affinity"
            )
        self.policy = policy
        self.seed = seed
        self.turn = 0
        self.faults = 0
        self.last_fault = ""
        self.load_requests: Ints = np.zeros(count, np.int64)
        self.load_tokens: Ints = np.zeros(count, np.int64)
        self.ready_s: Floats = np.full(count, -math.inf)
        self.kv_tokens: Floats = np.full(count, math.inf)
        self._free = np.zeros(count)
        self._ascending = np.arange(count)
        slack, factor = float(policy.slack_requests), float(policy.factor)
        self._route = compiled_for(
            route_one, policy.kind, seed, 0, 0, self.ready_s, 0.0, self.load_requests,
            self.load_tokens, slack, factor,
        )  # fmt: skip
        self._slack, self._factor = slack, factor
        if policy.kind == choice.LEXICOGRAPHIC:
            self._place = compiled_for(
                place_one, 0, self.load_requests, self.load_tokens, self.kv_tokens, self.ready_s, 0.0,
                self._free, self._ascending, float(policy.outlier_factor), slack,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.ready_s)

    def choose(
        self, request: Request, affinity: int, now_s: float, ready_s: Floats | None = None
    ) -> int:
        """Return the replica that takes a request; where none may be used, the one that may soonest.

        ``affinity`` is the replica that has one, or -1; ``ready_s`` stands in for the router's own
        for this decision.
        """
        ready = self.ready_s if ready_s is None else ready_s
        turn = self.turn
        self.turn = turn + 1
        kind = self.policy.kind
        if len(ready) == 1:
            return 0
        if kind == choice.CUSTOM:
            best = self._best_scored(request, affinity, now_s, ready)
            if best >= 0:
                return best
            kind = choice.LEAST_TOKENS
        elif kind == choice.LEXICOGRAPHIC:
            tokens = request.prompt_tokens + request.predicted_tokens
            return int(
                self._place(
                    tokens, self.load_requests, self.load_tokens, self.kv_tokens, ready, now_s,
                    self._free, self._ascending, float(self.policy.outlier_factor), self._slack,
                )
            )  # fmt: skip
        return int(
            self._route(
                kind, self.seed, turn, affinity, ready, now_s,
                self.load_requests, self.load_tokens, self._slack, self._factor,
            )
        )  # fmt: skip

    def charge(self, replica: int, requests: int, tokens: int) -> None:
        """Count work in, or, negative, out."""
        self.load_requests[replica] += requests
        self.load_tokens[replica] += tokens

    def _best_scored(self, request: Request, affinity: int, now_s: float, ready: Floats) -> int:
        score = self.policy.score
        assert score is not None
        best, best_score = -1, math.inf
        for i in range(len(ready)):
            if ready[i] <= now_s:
                seen = Replica(
                    i, int(self.load_requests[i]), int(self.load_tokens[i]), i == affinity
                )
                value = self._ask(score, seen, request)
                if value < best_score:
                    best, best_score = i, value
        return best

    def _ask(self, score: Compiled, replica: Replica, request: Request) -> float:
        seen = {"replica": replica, "request": request}
        try:
            value = float(score.function(*(seen[v] for v in score.views), *score.parameters))
        except Exception as error:
            self.last_fault = f"policy {score.name} raised {type(error).__name__}: {error}"
        else:
            if value == value:
                return value
            self.last_fault = f"policy {score.name} returned nan"
        self.faults += 1
        return math.inf


class WeightedRouter(LiveRouter):
    """Interleaved weighted round-robin over live replicas (Helix): each takes work in proportion to
    its weight, decoded tokens included."""

    def __init__(self, policy: RoutingPolicy, weights: Sequence[float], seed: int = 0) -> None:
        super().__init__(policy, len(weights), seed)
        self.weight = np.zeros(len(weights))
        self.load = np.zeros(len(weights))
        self.usable = np.zeros(len(weights), np.bool_)
        self._open = np.zeros(len(weights), np.bool_)
        self._weigh = compiled_for(
            weigh_one, self.weight, self.load, self.usable, self.ready_s, 0.0, self._open, 0.0
        )
        self.set_weights(weights)

    def set_weights(self, weights: Sequence[float]) -> None:
        """Go on with other weights; work done stays done."""
        new = np.asarray(weights, np.float64)
        self.load = carried_loads(self.load, self.weight, new)
        self.weight = new
        self.usable = (new > 0.0) & (new >= LEAST_SHARE * new.sum())

    def choose(
        self, request: Request, affinity: int, now_s: float, ready_s: Floats | None = None
    ) -> int:
        """Return the replica whose load over weight after the request is least."""
        ready = self.ready_s if ready_s is None else ready_s
        self.turn += 1
        chosen = int(
            self._weigh(
                self.weight, self.load, self.usable, ready, now_s, self._open,
                float(request.prompt_tokens),
            )
        )  # fmt: skip
        return chosen if chosen >= 0 else int(np.argmin(ready))

    def decode(self, replica: int, tokens: int) -> None:
        """Count tokens that a replica has decoded."""
        if self.weight[replica] > 0.0:
            self.load[replica] += tokens / self.weight[replica]

    def rejoin(self, replica: int) -> None:
        """Let a replica that comes back start level with the most loaded one."""
        self.load[replica] = max(float(self.load[replica]), float(self.load.max()))
