"""Maximum flow with the minimum cut that proves it (Dinic's algorithm, compiled)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.compilation import entry_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

TOLERANCE = 1e-9
"""Residual capacity below this share of the largest finite one counts as none."""


@dataclass(frozen=True, slots=True)
class MaxFlow:
    """A maximum flow; the arcs from ``source_side`` to the rest have its value as capacity."""

    value: float
    flow: Floats
    """Of each arc."""
    source_side: Flags
    """Of a minimum cut, by vertex."""


def max_flow(
    vertices: int,
    tails: ArrayLike,
    heads: ArrayLike,
    capacities: ArrayLike,
    *,
    source: int,
    sink: int,
) -> MaxFlow:
    """Return a maximum flow over directed arcs; capacities may be infinite."""
    tail, head = np.asarray(tails, np.int64), np.asarray(heads, np.int64)
    capacity = np.asarray(capacities, np.float64)
    finite = capacity[np.isfinite(capacity)]
    capacity = np.where(np.isfinite(capacity), capacity, finite.sum() + 1.0)
    residual = np.concatenate((capacity, np.zeros(len(tail))))
    at, arcs = _adjacency(vertices, tail, head)
    least = TOLERANCE * float(capacity.max(initial=0.0))
    level = np.empty(vertices, np.int64)
    value = push_flow(
        at, arcs, np.concatenate((head, tail)), residual, source, sink, least, level,
        np.empty(vertices, np.int64), np.empty(vertices, np.int64), np.empty(vertices, np.int64),
    )  # fmt: skip
    return MaxFlow(float(value), np.maximum(capacity - residual[: len(tail)], 0.0), level >= 0)


def _adjacency(vertices: int, tail: Ints, head: Ints) -> tuple[Ints, Ints]:
    """Arcs, then their reverses, grouped by the vertex they leave."""
    origin = np.concatenate((tail, head))
    arcs = np.argsort(origin, kind="stable")
    at = np.searchsorted(origin[arcs], np.arange(vertices + 1)).astype(np.int64)
    return at, arcs.astype(np.int64)


@entry_kernel
def push_flow(at, arcs, to, residual, source, sink, least, level, queue, next_arc, path):
    """Augment ``residual`` to a maximum flow and return what was added; ``level`` is afterwards
    negative on the sink's side of a minimum cut. Arc ``a`` and its reverse are ``m`` apart."""
    m = len(to) // 2
    total = 0.0
    while True:
        level[:] = -1
        level[source] = 0
        queue[0] = source
        first, last = 0, 1
        while first < last:
            u = queue[first]
            first += 1
            for place in range(at[u], at[u + 1]):
                a = arcs[place]
                if residual[a] > least and level[to[a]] < 0:
                    level[to[a]] = level[u] + 1
                    queue[last] = to[a]
                    last += 1
        if level[sink] < 0:
            return total
        for vertex in range(len(level)):
            next_arc[vertex] = at[vertex]
        depth, u = 0, source
        while True:
            if u == sink:
                amount = np.inf
                for i in range(depth):
                    amount = min(amount, residual[path[i]])
                back = depth
                for i in range(depth - 1, -1, -1):
                    a = path[i]
                    residual[a] -= amount
                    residual[a + m if a < m else a - m] += amount
                    if residual[a] <= least:
                        back = i
                total += amount
                depth = back
                a = path[depth]
                u = to[a + m if a < m else a - m]
                continue
            found = False
            while next_arc[u] < at[u + 1]:
                a = arcs[next_arc[u]]
                if residual[a] > least and level[to[a]] == level[u] + 1:
                    found = True
                    break
                next_arc[u] += 1
            if found:
                path[depth] = a
                depth += 1
                u = to[a]
            elif depth == 0:
                break
            else:
                depth -= 1
                a = path[depth]
                u = to[a + m if a < m else a - m]
                next_arc[u] += 1
    return total
