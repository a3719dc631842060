"""Flows that no placement exceeds, on any links and with or without partial inference.

Every layer must be held by nodes whose rates sum to the flow F. So each node's layers are units that
cover the L layers, and weights w that sum to at least 1 over every set of nodes able to carry F
together (a dual feasible function of bin covering) prove that the nodes cover at most
``sum of max_k k w(k)`` layers; if that is less than L, no placement carries F.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.solve.milp import Program

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GRID = 400
"""Steps in which rates are rounded up to the flow."""
ROUNDS = 60
RESOLUTION = 1e-3


@dataclass(frozen=True, slots=True)
class Bound:
    """A flow no placement exceeds, and why."""

    tokens_per_s: float
    name: str


def upper_bound(
    tables: Sequence[Floats], numbers: Ints, layers: int, *, lower: float = 0.0
) -> Bound:
    """Return the best of the bounds; ``lower`` is a flow known to be attained."""
    work = Bound(work_bound(tables, numbers, layers), "work")
    halves = Bound(halves_bound(tables, numbers, layers), "halves")
    best = min(work, halves, key=lambda bound: bound.tokens_per_s)
    if best.tokens_per_s <= lower * (1 + 1e-6):
        return best
    covering = Bound(covering_bound(tables, numbers, layers, lower, best.tokens_per_s), "covering")
    return min(best, covering, key=lambda bound: bound.tokens_per_s)


def work_bound(tables: Sequence[Floats], numbers: Ints, layers: int) -> float:
    """Return the sum of ``max_k k T(k)`` over L: all layers' work shared freely (Helix)."""
    most = [float((np.arange(1, len(t) + 1) * t).max(initial=0.0)) for t in tables]
    return float(np.dot(most, numbers)) / layers


def halves_bound(tables: Sequence[Floats], numbers: Ints, layers: int) -> float:
    """Return the bound by the weights 1 for a node that carries the flow alone and 1/2 for others:
    where none carries it alone, at least two hold the layer."""
    flows = np.unique(np.concatenate([table[table > 0] for table in tables] or [np.zeros(0)]))
    best = 0.0
    low, high = 0, len(flows) - 1
    while low <= high:
        middle = (low + high) // 2
        covered = 0.0
        for table, number in zip(tables, numbers, strict=True):
            k = np.arange(1, len(table) + 1)
            weights = np.where(table >= flows[middle], 1.0, 0.5) * (table > 0)
            covered += float(number) * float((k * weights).max(initial=0.0))
        if covered >= layers - 1e-9:
            best, low = float(flows[middle]), middle + 1
        else:
            high = middle - 1
    # above the fastest node pairs may still carry a flow
    return best if low < len(flows) else float("inf")


def covering_bound(
    tables: Sequence[Floats], numbers: Ints, layers: int, lower: float, upper: float
) -> float:
    """Return the bound by the best weights, to within a thousandth, by bisection over the flow."""
    low, high = max(lower, RESOLUTION * upper), upper
    columns: list[Floats] = []
    while high - low > RESOLUTION * high:
        middle = (low + high) / 2
        if _covered(tables, numbers, middle, layers, columns) < layers * (1 - 1e-9):
            high = middle
        else:
            low = middle
    return high


def _covered(
    tables: Sequence[Floats], numbers: Ints, flow: float, enough: int, known: list[Floats]
) -> float:
    """Return an upper bound on the layers that the nodes cover at a flow, by cutting planes:
    weights first, then the set of nodes that they value least."""
    kind = np.concatenate([np.full(len(table), t) for t, table in enumerate(tables)])
    k = np.concatenate([np.arange(1, len(table) + 1) for table in tables])
    rates = np.concatenate(list(tables))
    keep = rates > 0
    kind, k, rates = kind[keep], k[keep], rates[keep]
    sizes = np.minimum(np.ceil(rates / flow * GRID - 1e-9), GRID).astype(np.int64)
    # sets found at smaller flows may not carry this one
    sets = [column for column in known if column @ sizes >= GRID]
    sets += [row * np.ceil(GRID / size) for row, size in zip(np.eye(len(k)), sizes, strict=True)]
    best = np.inf
    for _ in range(ROUNDS):
        program = Program()
        pi = program.variables(len(tables), cost=numbers)
        w = program.variables(len(k), upper=1.0)
        items = np.arange(len(k))
        program.rows(
            np.concatenate((items, items)), np.concatenate((pi[kind], w)),
            np.concatenate((np.ones(len(k)), -k.astype(float))), lower=0.0,
        )  # fmt: skip
        matrix = np.array(sets)
        row, column = np.nonzero(matrix)
        program.rows(row, w[column], matrix[row, column], lower=1.0, count=len(sets))
        found = program.solve(relax=True)
        if not len(found.values):
            return float(best)
        if found.objective >= enough * (1 + 1e-9):
            return float(found.objective)
        weights = np.maximum(found.values[w], 0.0)
        cost, chosen = cheapest_cover(weights, sizes, GRID)
        best = min(best, found.objective / max(cost, 1e-12))
        if best < enough * (1 - 1e-9) or cost >= 1 - 1e-7:
            return float(best)
        column_of = np.bincount(chosen, minlength=len(k)).astype(np.float64)
        sets.append(column_of)
        known.append(column_of)
    return float(best)


def cheapest_cover(weights: Floats, sizes: Ints, target: int) -> tuple[float, Ints]:
    """Return the least total weight of items, repeated at will, whose sizes reach ``target``, and
    the items."""
    cost = np.full(target + 1, np.inf)
    cost[0] = 0.0
    item = np.zeros(target + 1, np.int64)
    for size in range(1, target + 1):
        options = cost[np.maximum(size - sizes, 0)] + weights
        item[size] = int(options.argmin())
        cost[size] = options[item[size]]
    chosen, left = [], target
    while left > 0:
        chosen.append(int(item[left]))
        left -= int(sizes[item[left]])
    return float(cost[target]), np.array(chosen, np.int64)
