"""Local search over placements: move, swap, shift and split, judged by any score."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.layers.flow import Network
from gpusched.timing.machines import Placement

Ints = NDArray[np.int64]

Score = Callable[[Placement], float]
"""Of a placement, larger is better; -inf for one that will not do."""


def improve(
    network: Network,
    start: Placement,
    score: Score,
    *,
    seed: int = 0,
    time_limit_s: float = 10.0,
    attempts: int | None = None,
) -> tuple[Placement, float]:
    """Climb from a placement by random changes of one or two nodes or one boundary between stages,
    and return the best placement and its score.

    Args:
        attempts: most placements to try; only the time limits if not given. With it, and time to
            spare, results depend on ``seed`` alone.
    """
    rng = np.random.default_rng(seed)
    best, value = start, score(start)
    seen = {_key(start)}
    begun, tried = perf_counter(), 0
    while perf_counter() - begun < time_limit_s and (attempts is None or tried < attempts):
        tried += 1
        changed = _neighbour(network, best, rng)
        if changed is None or _key(changed) in seen:
            continue
        seen.add(_key(changed))
        found = score(changed)
        if found > value:
            best, value = changed, found
    return best, value


def _key(placement: Placement) -> bytes:
    return placement.first.tobytes() + placement.count.tobytes()


def _neighbour(
    network: Network, placement: Placement, rng: np.random.Generator
) -> Placement | None:
    first, count = placement.first.copy(), placement.count.copy()
    change = (_move, _swap, _shift, _move, _split)[rng.integers(5)]
    if not change(network, first, count, rng):
        return None
    if rng.random() < 0.25 and not _move(network, first, count, rng):
        return None
    return Placement(first, count)


def _boundaries(network: Network, first: Ints, count: Ints) -> Ints:
    used = count > 0
    outer = np.array([0, network.machines.layers])
    return np.unique(np.concatenate((outer, first[used], (first + count)[used])))


def _move(network: Network, first: Ints, count: Ints, rng: np.random.Generator) -> bool:
    """Give a node the layers between two boundaries."""
    node = int(rng.integers(network.n))
    marks = _boundaries(network, first, count)
    begin = marks[rng.integers(len(marks) - 1)]
    ends = marks[(marks > begin) & (marks <= begin + network.most[node])]
    if not len(ends):
        return False
    first[node], count[node] = begin, ends[rng.integers(len(ends))] - begin
    return True


def _swap(network: Network, first: Ints, count: Ints, rng: np.random.Generator) -> bool:
    """Exchange the layers of two nodes."""
    i, j = rng.integers(network.n, size=2)
    if count[i] > network.most[j] or count[j] > network.most[i]:
        return False
    first[[i, j]], count[[i, j]] = first[[j, i]], count[[j, i]]
    return bool(i != j)


def _shift(network: Network, first: Ints, count: Ints, rng: np.random.Generator) -> bool:
    """Move a boundary by a layer."""
    marks = _boundaries(network, first, count)[1:-1]
    if not len(marks):
        return False
    mark, by = marks[rng.integers(len(marks))], 1 if rng.random() < 0.5 else -1
    begins, ends = (first == mark) & (count > 0), (first + count == mark) & (count > 0)
    first[begins] += by
    count[begins] -= by
    count[ends] += by
    return bool((count[begins | ends] >= 1).all() and (count <= network.most).all())


def _split(network: Network, first: Ints, count: Ints, rng: np.random.Generator) -> bool:
    """Let two nodes with the same layers divide them."""
    node = int(rng.integers(network.n))
    if count[node] < 2:
        return False
    same = np.flatnonzero((first == first[node]) & (count == count[node]))
    if len(same) < 2:
        return False
    cut = int(rng.integers(1, count[node]))
    other = int(rng.choice(same[same != node]))
    first[other] += cut
    count[other] -= cut
    count[node] = cut
    return True
