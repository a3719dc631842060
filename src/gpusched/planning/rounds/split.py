"""How many workers of each kind prefill and how many decode: the integer program and its structure.

With the work of a phase shared in proportion to speed, all its workers are busy for the same share of
time, and with ``u`` the multiple of the offered load that both phases can carry (A-1 to A-5)

    max u  s.t.  sum mu_pre x >= Lambda_pre u,  sum mu_dec y >= Lambda_dec u,
                 sum size (x + y) <= GPUs of each group,  x, y whole, a worker in each phase.

``Z = 1/u`` is the load of the busier phase. For a given number of GPUs each phase is an unbounded
knapsack. Where each size divides the next larger one, as powers of two do, its answer is a closed form
(``Knapsack``), and the best split a search over the GPUs given to prefill; other sizes take the dynamic
program of ``mixes``, and nodes that such workers do not fill or a floor on KV cache the integer program.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError
from gpusched.planning.rounds.nodes import divisible
from gpusched.planning.rounds.problem import SplitProblem
from gpusched.planning.rounds.program import split_program
from gpusched.solve.milp import Solution

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Workers of each kind in each phase."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    capacity: float
    """``u``: multiple of the load that both phases carry."""
    other: float
    """The same of the phase with more room."""
    bound: float
    """No split has a larger ``capacity``."""

    @property
    def load(self) -> float:
        """``Z``: share of its capacity that the busier phase uses."""
        return 1.0 / self.capacity

    @property
    def counts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Workers of the phases."""
        return self.prefill, self.decode


def capacity_of(
    problem: SplitProblem, prefill: ArrayLike, decode: ArrayLike
) -> tuple[float, float]:
    """Return the multiples of the load that the phases carry, the lesser first."""
    pre = float(np.asarray(prefill) @ problem.prefill_speed) / problem.prefill_load
    dec = float(np.asarray(decode) @ problem.decode_speed) / problem.decode_load
    return min(pre, dec), max(pre, dec)


def best_split(problem: SplitProblem) -> Split:
    """Return a split that carries the largest multiple of the load.

    By knapsacks where counting GPUs is enough, else by the integer program.

    Raises:
        InfeasibleError: no worker of one of the phases fits beside one of the other.
    """
    if problem.has_structure:
        found = _merge_groups(problem)
        if found is not None:
            return found
    return program_split(problem)


def program_split(problem: SplitProblem, *, time_limit_s: float = 30.0) -> Split:
    """Return the best split by the integer program on HiGHS, with its bound.

    Raises:
        InfeasibleError: no worker of one of the phases fits beside one of the other.
    """
    model, prefill, decode = split_program(problem)
    solution: Solution = model.solve(time_limit_s=time_limit_s, relative_gap=1e-9)
    if not len(solution.values):
        raise InfeasibleError(_does_not_fit(problem))
    x, y = (np.rint(solution.values[v]).astype(np.int64) for v in (prefill, decode))
    return _split(problem, x, y, solution.bound)


def best_splits(problem: SplitProblem, count: int) -> list[Split]:
    """Return the ``count`` best splits of one group, the best first; fewer if there are no more.

    Splits are ordered by the capacity of the busier phase, then by that of the other. Exact: in
    sorted lists of each phase's best mixes, pair (i, j) is no better than the (i + 1)(j + 1) pairs
    before it, so few pairs for each division of the GPUs can be among the best.

    Raises:
        InfeasibleError: no worker of one of the phases fits beside one of the other.
    """
    if len(problem.gpus) > 1 or not problem.has_structure:
        return [best_split(problem)]
    gpus = int(problem.gpus[0])
    exact = mixes(problem.size, problem.prefill_speed, gpus, count)
    spare = mixes(problem.size, problem.decode_speed, gpus, count, spare=True)
    i, j = (a.ravel() for a in np.indices((exact.shape[1], spare.shape[1])))
    near = (i + 1) * (j + 1) <= count
    i, j = i[near], j[near]
    pre = exact.speed[:, i] / problem.prefill_load
    dec = spare.speed[::-1][:, j] / problem.decode_load
    least, most = np.minimum(pre, dec).ravel(), np.maximum(pre, dec).ravel()
    order = np.lexsort((-most.round(12), -least.round(12)))[:count]
    order = order[least[order] > 0]
    if not len(order):
        raise InfeasibleError(_does_not_fit(problem))
    best = float(least[order[0]])
    splits = []
    for flat in order:
        used, pair = divmod(int(flat), len(i))
        x = exact.workers[used, i[pair]]
        y = spare.workers[gpus - used, j[pair]]
        splits.append(_split(problem, x, y, best))
    return splits


class Knapsack:
    """The fastest workers of one phase on at most 0, 1, ... GPUs.

    Where each size divides the next larger one, workers can be grouped into full blocks of the largest
    size and a rest, so blocks of each size are worth their best content,
    ``v_k = max(speed_k, size_k / size_(k-1) v_(k-1))``, and are filled in from the largest.
    """

    def __init__(self, size: Ints, speed: Floats, gpus: int) -> None:
        self.kinds = len(size)
        self.table = None if divisible(size) else mixes(size, speed, gpus, 1, spare=True)
        if self.table is not None:
            self.speed = self.table.speed[:, 0]
            return
        self.blocks: list[tuple[int, int, int]] = []
        """Size, the kind that fills a block best, and how many of it do; the smallest first."""
        worth: list[float] = []
        for n in np.unique(size).tolist():
            same = np.flatnonzero(size == n)
            kind = int(same[np.argmax(speed[same])])
            block = (n, kind, 1)
            value = float(speed[kind])
            if self.blocks and (n // self.blocks[-1][0]) * worth[-1] >= value:
                smaller, other, many = self.blocks[-1]
                block, value = (n, other, n // smaller * many), n // smaller * worth[-1]
            self.blocks.append(block)
            worth.append(value)
        left = np.arange(gpus + 1)
        self.speed = np.zeros(gpus + 1)
        for (n, _, _), value in zip(self.blocks[::-1], worth[::-1], strict=True):
            self.speed += left // n * value
            left %= n

    def workers(self, gpus: int) -> Ints:
        """Return the workers of each kind on at most so many GPUs."""
        if self.table is not None:
            return np.asarray(self.table.workers[gpus, 0])
        counts = np.zeros(self.kinds, np.int64)
        for n, kind, many in self.blocks[::-1]:
            counts[kind] += gpus // n * many
            gpus %= n
        return counts


@dataclass(frozen=True)
class Mixes:
    """The best mixes of workers for every number of GPUs."""

    speed: Floats
    """Shape (GPUs + 1, mixes), falling along a row; minus infinity where there are fewer."""
    workers: Ints
    """Shape (GPUs + 1, mixes, kinds)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of GPUs and mixes."""
        return self.speed.shape


def mixes(size: Ints, speed: Floats, gpus: int, count: int, *, spare: bool = False) -> Mixes:
    """Return the ``count`` fastest mixes that use exactly 0, 1, ... GPUs, or at most if ``spare``.

    The unbounded knapsack, taken kind by kind so that every mix comes up once.
    """
    kinds = len(size)
    best = np.full((gpus + 1, count), -np.inf)
    workers = np.zeros((gpus + 1, count, kinds), np.int64)
    best[: gpus + 1 if spare else 1, 0] = 0.0
    for kind in np.flatnonzero(speed > 0):
        n = int(size[kind])
        for m in range(n, gpus + 1):
            both = np.concatenate((best[m], best[m - n] + speed[kind]))
            keep = np.argsort(-both, kind="stable")[:count]
            one_more = workers[m - n].copy()
            one_more[:, kind] += 1
            workers[m] = np.concatenate((workers[m], one_more))[keep]
            best[m] = both[keep]
    return Mixes(best, workers)


def every_split(problem: SplitProblem) -> Iterator[tuple[Ints, Ints]]:
    """Yield every split of one group of nodes with a worker in each phase: for small clusters."""
    gpus, size = int(problem.gpus[0]), problem.size
    phases = []
    for speed in (problem.prefill_speed, problem.decode_speed):
        ranges = [
            range(gpus // int(n) + 1 if s > 0 else 1) for n, s in zip(size, speed, strict=True)
        ]
        every = (np.array(mix, np.int64) for mix in product(*ranges))
        phases.append([mix for mix in every if 0 < int(mix @ size) <= gpus])
    for x in phases[0]:
        for y in phases[1]:
            if int((x + y) @ size) <= gpus:
                yield x, y


def _merge_groups(problem: SplitProblem) -> Split | None:
    """Divide each group's GPUs between the phases: sums of the groups' Pareto-optimal divisions.

    Returns nothing where the sums are too many to list.
    """
    pre, dec = np.zeros(1), np.zeros(1)
    chosen = np.zeros((1, 0), np.int64)
    tables = []
    for g, gpus in enumerate(problem.gpus):
        kinds = np.flatnonzero(problem.group == g)
        x, y = (
            Knapsack(problem.size[kinds], speed[kinds], int(gpus))
            for speed in (problem.prefill_speed, problem.decode_speed)
        )
        tables.append((kinds, x, y))
        group_pre, group_dec = x.speed, y.speed[::-1]
        mine = _front(group_pre, group_dec)
        if len(pre) * len(mine) > 20_000_000:
            return None
        at, of = np.indices((len(pre), len(mine)))
        at, of = at.ravel(), mine[of.ravel()]
        pre, dec = pre[at] + group_pre[of], dec[at] + group_dec[of]
        keep = _front(pre, dec)
        pre, dec = pre[keep], dec[keep]
        chosen = np.column_stack((chosen[at[keep]], of[keep]))
    least = np.minimum(pre / problem.prefill_load, dec / problem.decode_load)
    most = np.maximum(pre / problem.prefill_load, dec / problem.decode_load)
    best = int(np.lexsort((-most, -least))[0])
    if least[best] <= 0:
        raise InfeasibleError(_does_not_fit(problem))
    prefill, decode = np.zeros_like(problem.size), np.zeros_like(problem.size)
    for (kinds, x, y), used, gpus in zip(tables, chosen[best], problem.gpus, strict=True):
        prefill[kinds] = x.workers(int(used))
        decode[kinds] = y.workers(int(gpus - used))
    return _split(problem, prefill, decode, float(least[best]))


def _front(a: Floats, b: Floats) -> Ints:
    """Return the points that no other beats in both coordinates."""
    order = np.lexsort((-b, -a))
    highest = np.maximum.accumulate(b[order])
    keep = np.concatenate(([True], b[order][1:] > highest[:-1]))
    return order[keep]


def _split(problem: SplitProblem, x: Ints, y: Ints, bound: float) -> Split:
    least, most = capacity_of(problem, x, y)
    return Split(tuple(x.tolist()), tuple(y.tolist()), least, most, max(bound, least))


def _does_not_fit(problem: SplitProblem) -> str:
    for name, speed in (("prefill", problem.prefill_speed), ("decode", problem.decode_speed)):
        if not (speed > 0).any():
            return f"no kind of worker may {name}"
    held = f" that hold {problem.held_tokens:g} tokens of KV cache" if problem.held_tokens else ""
    return f"{int(problem.gpus.sum())} GPUs are too few for a prefill worker beside decode workers{held}"
