"""Which experts get a replica for one step, where, and how tokens split: PROBE's planner, and wider.

The published planner (arXiv 2602.00509, algorithm 1) repeats one move: the slowest rank's heaviest
expert to the fastest rank. ``ReplicaPlanner`` can also weigh several experts and helpers in each move
and split the tokens of the chosen replicas exactly.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.moe.expert_layer import ExpertLayer, Mask
from gpusched.moe.replica_moves import largest_latency, plan_moves
from gpusched.moe.token_split import split_exactly

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_MOVES = 16
TOLERANCE = 0.01
"""Gain, as a share of the largest latency, at which the published planner stops."""
WIDE_TOLERANCE = 1e-4


class ReplicaPlan(NamedTuple):
    """A placement with replicas and a split of tokens; valid until the planner plans again."""

    hosted: Mask
    """Shape (experts, ranks)."""
    remote: Floats
    """Tokens of each expert from ranks that do not host it, by host, shape (experts, ranks)."""
    replicas: int


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """How far the planner looks."""

    experts: int = 3
    """Heaviest experts of the slowest rank that are weighed in each move; 1 as published."""
    helpers: int = 2
    """Fastest ranks that are weighed; 1 as published."""
    fills: tuple[Literal["mean", "level"], ...] = ("mean", "level")
    """How far a move fills up: to the mean latency of all ranks, as published, or until its two
    ranks are level. Each way makes a plan; the better one is taken."""
    exact_split: bool = True
    """Whether tokens are split exactly once the replicas are chosen."""
    max_moves: int = MAX_MOVES
    tolerance: float = WIDE_TOLERANCE

    def __post_init__(self) -> None:
        if not self.fills or not set(self.fills) <= {"mean", "level"}:
            raise InputError(f"fills: choose of mean and level, got {self.fills}")
        if min(self.experts, self.helpers) < 1 or self.max_moves < 0:
            raise InputError("experts and helpers must be at least 1, max_moves at least 0")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance: must lie in [0, 1), got {self.tolerance:g}")


PUBLISHED = PlannerSettings(1, 1, ("mean",), False, MAX_MOVES, TOLERANCE)
WIDE = PlannerSettings()


@dataclass(slots=True)
class _Buffer:
    hosted: Mask
    remote: Floats
    replicas: int = 0


class ReplicaPlanner:
    """Plans step after step in the same memory; a plan takes some tens of microseconds."""

    def __init__(self, layer: ExpertLayer, settings: PlannerSettings = WIDE) -> None:
        self.layer, self.settings = layer, settings
        experts, ranks = layer.experts, layer.ranks
        self._home = layer.home
        self._cost = np.array([layer.token_s, layer.expert_s, layer.exchange_token_s])
        self._plans = [
            _Buffer(np.zeros((experts, ranks), np.uint8), np.zeros((experts, ranks)))
            for _ in settings.fills
        ]
        self._moves = (
            np.zeros((4, ranks)), np.zeros(ranks, np.int64), np.zeros(ranks, np.int64),
            np.zeros(ranks), np.zeros((4, ranks)), np.zeros((ranks, ranks), np.uint8),
            np.zeros(settings.experts, np.int64), np.zeros(settings.helpers, np.int64),
        )  # fmt: skip
        self._split = (
            np.zeros((4, ranks)), np.zeros(experts), np.zeros(experts), np.zeros(ranks),
            np.zeros(ranks, np.uint8), np.zeros(ranks, np.int64), np.zeros(ranks, np.int64),
        )  # fmt: skip

    def plan(self, tokens: ArrayLike, budget: ArrayLike | None = None) -> ReplicaPlan:
        """Return replicas and split for predicted counts of shape (experts, ranks).

        ``budget`` bounds the replicas that each rank takes in, and those it sends, shape (ranks,);
        the layer's slots if not given.

        Raises:
            InputError: counts that are no counts.
        """
        counts, s = self.layer.check_tokens(tokens), self.settings
        most = np.full(self.layer.ranks, self.layer.replica_slots)
        if budget is not None:
            most = np.minimum(np.asarray(budget, np.int64), most)
        best, least = self._plans[0], np.inf
        for fill, plan in zip(s.fills, self._plans, strict=True):
            plan.replicas = plan_moves(
                counts, self._home, self._cost, most, most, s.max_moves, s.experts, s.helpers,
                fill == "mean", s.tolerance, plan.hosted, plan.remote, *self._moves,
            )  # fmt: skip
            if s.exact_split and plan.replicas:
                split_exactly(counts, self._cost, plan.hosted, plan.remote, *self._split)
            if len(s.fills) > 1:
                slowest = largest_latency(
                    counts, plan.hosted, plan.remote, self._cost, self._moves[0]
                )
                if slowest < least:
                    best, least = plan, slowest
        return ReplicaPlan(best.hosted, best.remote, int(best.replicas))

    def split(self, tokens: Floats, hosted: Mask) -> Floats:
        """Return the split of tokens over the hosts of each expert with the least largest latency,
        shape (experts, ranks)."""
        remote = np.empty_like(tokens)
        split_exactly(tokens, self._cost, hosted, remote, *self._split)
        return remote

    def latency_s(self, tokens: Floats, plan: ReplicaPlan) -> Floats:
        """Return compute and exchange of each rank under a plan (B8), shape (ranks,)."""
        time = self.layer.time(tokens, plan.hosted, plan.remote)
        return np.asarray(time.compute_s + time.exchange_s, np.float64)
