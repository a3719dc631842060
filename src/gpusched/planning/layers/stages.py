"""Placements in stages: all nodes of a stage hold the same layers.

On links that never limit, the order of stages does not matter, so a choice of stages is a small
knapsack: each stage is a multiset of kinds and the most layers k with which they still carry the
flow; the stages' layers must reach L and use no more machines of a kind than there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from gpusched.solve.milp import Program
from gpusched.timing.machines import Placement

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDEST = 4
"""Most nodes of a stage; 3 where there are many kinds."""


@dataclass(frozen=True)
class Stage:
    """Nodes, by kind, that hold the same layers."""

    kinds: tuple[int, ...]
    layers: int

    def count(self, kinds: int) -> Ints:
        """Number of nodes of each kind."""
        return np.bincount(self.kinds, minlength=kinds).astype(np.int64)


Cost = Callable[[Stage], float]


class StageSets:
    """All multisets of kinds up to a width, and their summed tokens/s by layers held."""

    def __init__(
        self, tables: Sequence[Floats], numbers: Ints, *, narrowest: int = 1, widest: int = WIDEST
    ) -> None:
        self.tables, self.numbers = tuple(tables), np.asarray(numbers, np.int64)
        longest = max((len(table) for table in tables), default=0)
        # nothing is carried by a machine that cannot hold so many layers
        padded = np.full((len(tables), longest), -np.inf)
        for row, table in zip(padded, tables, strict=True):
            row[: len(table)] = table
        present = [kind for kind, number in enumerate(self.numbers) if number and len(tables[kind])]
        sets = [
            kinds
            for width in range(narrowest, widest + 1)
            for kinds in combinations_with_replacement(present, width)
            if all(kinds.count(kind) <= self.numbers[kind] for kind in set(kinds))
        ]
        self.sets = sets
        self.rates = np.array([padded[list(kinds)].sum(axis=0) for kinds in sets]).reshape(
            len(sets), longest
        )

    def stages(self, tokens_per_s: float) -> list[Stage]:
        """Return the stages that carry a flow, each with as many layers as it may hold; sets that
        do no better than a part of them are left out."""
        carries = self.rates >= tokens_per_s * (1 - 1e-9)
        longest = np.where(
            carries.any(axis=1), carries.shape[1] - np.argmax(carries[:, ::-1], axis=1), 0
        )
        reach = dict(zip(self.sets, longest.tolist(), strict=True))
        found = []
        for kinds, layers in reach.items():
            parts = {kinds[:i] + kinds[i + 1 :] for i in range(len(kinds))}
            if layers and all(reach.get(part, 0) < layers for part in parts):
                found.append(Stage(kinds, layers))
        return found

    def flows(self) -> Floats:
        """Flows at which what a stage can hold changes, ascending."""
        return np.unique(self.rates[np.isfinite(self.rates) & (self.rates > 0)])


def choose_stages(
    sets: StageSets,
    layers: int,
    tokens_per_s: float,
    *,
    deepest: int | None = None,
    cost: Cost | None = None,
    time_limit_s: float = 5.0,
) -> list[Stage] | None:
    """Return stages that carry a flow at the least total cost, or None if no choice does.

    Args:
        deepest: most stages.
        cost: of a stage; 1 each if not given.
    """
    options = sets.stages(tokens_per_s)
    if not options:
        return None
    program = Program()
    costs = np.array([cost(stage) if cost else 1.0 for stage in options])
    use = np.array([stage.count(len(sets.tables)) for stage in options])
    y = program.variables(len(options), cost=costs, upper=layers, integer=True)
    reach = np.array([stage.layers for stage in options])
    if (reach * y.size).sum() < layers:
        return None
    program.row(y, reach, lower=layers)
    for kind, number in enumerate(sets.numbers):
        if use[:, kind].any():
            program.row(y, use[:, kind], upper=float(number))
    if deepest is not None:
        program.row(y, upper=float(deepest))
    found = program.solve(time_limit_s=time_limit_s, relative_gap=0.01)
    if not len(found.values):
        return None
    chosen = [
        stage
        for stage, times in zip(options, found.values[y].round().astype(int), strict=True)
        for _ in range(times)
    ]
    return trim(chosen, layers, sets, tokens_per_s)


def trim(
    stages: Sequence[Stage], layers: int, sets: StageSets, tokens_per_s: float
) -> list[Stage] | None:
    """Take off layers beyond the model's, from the slowest stages first."""
    chosen = list(stages)
    excess = sum(stage.layers for stage in chosen) - layers
    while excess > 0:
        rates = [_rate(sets, stage) for stage in chosen]
        shorter = [
            (rate, index)
            for index, rate in enumerate(rates)
            if chosen[index].layers == 1
            or _rate(sets, Stage(chosen[index].kinds, chosen[index].layers - 1))
            >= tokens_per_s * (1 - 1e-9)
        ]
        if not shorter:
            return None
        _, index = min(shorter)
        stage = chosen.pop(index)
        if stage.layers > 1:
            chosen.insert(index, Stage(stage.kinds, stage.layers - 1))
        excess -= 1
    return chosen


def _rate(sets: StageSets, stage: Stage) -> float:
    return float(sum(sets.tables[kind][stage.layers - 1] for kind in stage.kinds))


def best_stages(
    sets: StageSets, layers: int, *, deepest: int | None = None, least: float = 0.0
) -> tuple[float, list[Stage]] | None:
    """Return the largest flow that stages carry and the stages, by bisection over the flows at
    which the choice changes; None if no choice carries more than ``least``."""
    flows = sets.flows()
    flows = flows[flows > least]
    low, high = -1, len(flows)
    best: tuple[float, list[Stage]] | None = None
    while high - low > 1:
        middle = (low + high) // 2
        stages = choose_stages(sets, layers, float(flows[middle]), deepest=deepest)
        if stages is None:
            high = middle
        else:
            low = middle
            best = (min(_rate(sets, stage) for stage in stages), stages)
    return best


def place_stages(
    stages: Sequence[Stage], kind_of: Ints, order: Sequence[int] | None = None
) -> Placement:
    """Return the placement of stages one after the other, nodes of a kind taken in order."""
    free: dict[int, list[int]] = {}
    for node in order if order is not None else range(len(kind_of)):
        free.setdefault(int(kind_of[node]), []).append(int(node))
    first, count = np.zeros(len(kind_of), np.int64), np.zeros(len(kind_of), np.int64)
    at = 0
    for stage in stages:
        for kind in stage.kinds:
            node = free[kind].pop(0)
            first[node], count[node] = at, stage.layers
        at += stage.layers
    return Placement(first, count)
