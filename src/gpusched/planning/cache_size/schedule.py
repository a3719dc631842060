"""The size of the cache in each interval: least carbon with enough requests in time.

One size an interval is chosen under one row over all intervals, a multiple-choice knapsack. With a
price on lateness the intervals fall apart (or chain up, where changing the size costs), so a search
of the price gives an answer and a bound; HiGHS closes what gap is left.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.cache_size.carbon import CacheChoices
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
STEPS = 200
"""Of the search for the price at most; it ends by itself after about ten."""


@dataclass(frozen=True, slots=True)
class CacheSchedule:
    """A size for each interval."""

    size: Ints
    """Index into the sizes, shape (intervals,)."""
    sizes_tb: Floats
    """Shape (intervals,)."""
    carbon_g: float
    """With the cost of changing the size, if any."""
    bound_g: float
    """No schedule that meets the objective emits less."""
    attainment: float
    """Share of all requests that meet their objectives."""
    method: str
    seconds: float


def schedule_cache(
    choices: CacheChoices,
    attainment: float = 0.9,
    *,
    each_interval: bool = False,
    change_g_per_tb: float = 0.0,
    start_tb: float | None = None,
    growth_tb: float | NDArray[np.float64] = np.inf,
    method: Literal["auto", "price", "milp"] = "auto",
    time_limit_s: float = 30.0,
) -> CacheSchedule:
    """Return the sizes of least carbon at which ``attainment`` of the requests meet their objectives,
    over all intervals together or in ``each_interval`` alone.

    ``change_g_per_tb`` is charged for every terabyte added or given up, the first from ``start_tb``;
    from an interval to the next, the cache grows by ``growth_tb`` at most (one limit, or one an
    interval), or by one size.
    ``price`` is the Lagrangian alone, ``milp`` HiGHS alone, ``auto`` HiGHS where the Lagrangian
    leaves a gap.

    Raises:
        InfeasibleError: no choice of sizes reaches the attainment; says which it would reach.
        InputError: the attainment is no share.
    """
    if not 0 <= attainment <= 1:
        raise InputError(f"attainment: must lie in 0 to 1, got {attainment}")
    begun = perf_counter()
    carbon = choices.carbon_g
    reached = choices.attainment
    if each_interval:
        best = reached.max(axis=1)
        if (best < attainment).any():
            worst = int(best.argmin())
            raise InfeasibleError(
                f"interval {worst}: at most {best[worst]:.1%} of the requests meet their objectives "
                f"at any cache size, {attainment:.1%} are asked; lower the attainment to "
                f"{best.min():.3f} or add GPUs"
            )
        carbon = np.where(reached >= attainment, carbon, np.inf)
    share = choices.requests / max(choices.requests.sum(), 1e-300)
    gain = share[:, None] * reached
    change, first = _moves(choices.sizes_tb, len(carbon), change_g_per_tb, start_tb, growth_tb)
    most = _most(gain, np.isfinite(carbon), change, first)
    if most < attainment - 1e-12:
        raise InfeasibleError(
            f"at most {most:.1%} of the requests meet their objectives at any cache sizes, "
            f"{attainment:.1%} are asked; lower the attainment to {most:.3f} or add GPUs"
        )
    asked = 0.0 if each_interval else attainment
    if method == "milp":
        size, bound, used = *_milp(carbon, gain, asked, change, first, time_limit_s), "HiGHS"
    else:
        size, bound = _priced(carbon, gain, asked, change, first)
        used = "price on lateness"
        if method == "auto" and _total(carbon, change, first, size) > bound * (1 + 1e-9) + 1e-9:
            size, bound = _milp(carbon, gain, asked, change, first, time_limit_s)
            used = "HiGHS"
    rows = np.arange(len(size))
    return CacheSchedule(
        size,
        choices.sizes_tb[size],
        _total(carbon, change, first, size),
        bound,
        float(gain[rows, size].sum()),
        used,
        perf_counter() - begun,
    )


def _moves(
    sizes_tb: Floats,
    intervals: int,
    g_per_tb: float,
    start_tb: float | None,
    growth_tb: float | Floats,
) -> tuple[Floats | None, Floats]:
    """Return what going from a size to another costs before each interval but the first, shape
    (intervals - 1, sizes, sizes), and what the first size costs; infinite where the cache cannot grow
    so fast. None where all moves are free."""
    step_tb = sizes_tb[None, :] - sizes_tb[:, None]
    # a cache may always grow to the next size, or coarse sizes would stop it for ever
    least_tb = np.append(np.diff(sizes_tb), 0.0)[:, None]
    limit_tb = np.broadcast_to(np.asarray(growth_tb, np.float64), (intervals,))
    first = np.zeros(len(sizes_tb))
    if start_tb is not None:
        first = g_per_tb * np.abs(sizes_tb - start_tb)
        above = sizes_tb[sizes_tb > start_tb]
        reach_tb = start_tb + max(limit_tb[0], above.min() - start_tb if len(above) else 0.0)
        first[sizes_tb > reach_tb + 1e-9] = np.inf
    if g_per_tb == 0 and np.isinf(limit_tb[1:]).all():
        return None, first
    grows = step_tb[None] > np.maximum(limit_tb[1:, None, None], least_tb[None]) + 1e-9
    return np.where(grows, np.inf, g_per_tb * np.abs(step_tb)[None]), first


def _most(gain: Floats, allowed: NDArray[np.bool_], change: Floats | None, first: Floats) -> float:
    """Return the largest share in time of all schedules."""
    never = 10.0 * (1.0 + gain.max())
    barred = None if change is None else np.where(np.isinf(change), never * len(gain), 0.0)
    start = np.where(np.isinf(first), never * len(gain), 0.0)
    cost = np.where(allowed, -gain, never)
    size = _path(cost, barred, start)
    if _total(cost, barred, start, size) > 0.5 * never:
        raise InfeasibleError(
            "no cache that grows so slowly is large enough in time; lower the attainment, raise the "
            "growth limit or add GPUs"
        )
    return float(gain[np.arange(len(size)), size].sum())


def _total(carbon: Floats, change: Floats | None, first: Floats, size: Ints) -> float:
    rows = np.arange(len(size))
    total = carbon[rows, size].sum() + first[size[0]]
    if change is not None:
        total += change[rows[:-1], size[:-1], size[1:]].sum()
    return float(total)


def _priced(
    carbon: Floats, gain: Floats, asked: float, change: Floats | None, first: Floats
) -> tuple[Ints, float]:
    """Search the price of a missed objective; return the cheapest feasible sizes and the bound."""
    rows = np.arange(len(carbon))

    def cheapest(price: float) -> tuple[Ints, float]:
        size = _path(carbon - price * gain, change, first)
        value = _total(carbon, change, first, size) - price * (gain[rows, size].sum() - asked)
        return size, value

    size, bound = cheapest(0.0)
    if gain[rows, size].sum() >= asked - 1e-12:
        return size, bound
    low, price = size, 1.0 + np.ptp(carbon[np.isfinite(carbon)]) * len(carbon)
    high, value = cheapest(price)
    while gain[rows, high].sum() < asked - 1e-12 and price < 1e30:
        low, price = high, 16 * price
        high, value = cheapest(price)
    bound = max(bound, value)
    for _ in range(STEPS):
        # the price at which both cost the same; the bound is concave and has its peak between them
        more = gain[rows, high].sum() - gain[rows, low].sum()
        if more <= 0:
            break
        price = (_total(carbon, change, first, high) - _total(carbon, change, first, low)) / more
        size, value = cheapest(price)
        tangent = _total(carbon, change, first, high) - price * (gain[rows, high].sum() - asked)
        bound = max(bound, value)
        if value >= tangent - 1e-12 * abs(tangent):
            break
        if gain[rows, size].sum() >= asked - 1e-12:
            high = size
        else:
            low = size
    return _repaired(high, carbon, gain, asked, change, first), bound


def _path(cost: Floats, change: Floats | None, first: Floats) -> Ints:
    """Return the cheapest size for each interval; a shortest path where changes cost."""
    if change is None and not first.any():
        return np.asarray(cost.argmin(axis=1), np.int64)
    hop = change if change is not None else np.zeros((len(cost) - 1, *(cost.shape[1],) * 2))
    value = cost[0] + first
    back = np.zeros(cost.shape, np.int64)
    for t in range(1, len(cost)):
        through = value[:, None] + hop[t - 1]
        back[t] = through.argmin(axis=0)
        value = through.min(axis=0) + cost[t]
    size = np.empty(len(cost), np.int64)
    size[-1] = int(value.argmin())
    for t in range(len(cost) - 1, 0, -1):
        size[t - 1] = back[t, size[t]]
    return size


def _repaired(
    size: Ints, carbon: Floats, gain: Floats, asked: float, change: Floats | None, first: Floats
) -> Ints:
    """Move single intervals to cheaper sizes while enough requests stay in time."""
    size = size.copy()
    rows = np.arange(len(size))
    while True:
        slack = gain[rows, size].sum() - asked
        cost = carbon.copy()
        cost[0] += first
        if change is not None:
            cost[1:] += change[rows[:-1], size[:-1]]
            cost[:-1] += change[rows[:-1], :, size[1:]]
        saved = cost[rows, size][:, None] - cost
        saved[gain[rows, size][:, None] - gain > slack + 1e-12] = -np.inf
        t, s = np.unravel_index(int(saved.argmax()), saved.shape)
        if saved[t, s] <= 1e-12:
            return size
        size[t] = s


def _milp(
    carbon: Floats,
    gain: Floats,
    asked: float,
    change: Floats | None,
    first: Floats,
    time_limit_s: float,
) -> tuple[Ints, float]:
    """Solve (D-1) to (D-7) with HiGHS."""
    intervals, sizes = carbon.shape
    allowed = np.isfinite(carbon)
    allowed[0] &= np.isfinite(first)
    cost = np.where(allowed, carbon, 0.0)
    cost[0] += np.where(np.isfinite(first), first, 0.0)
    program = Program()
    chosen = program.variables((intervals, sizes), cost=cost, upper=allowed, integer=True)
    program.rows(np.arange(intervals)[:, None], chosen, 1.0, lower=1.0, upper=1.0)
    program.row(chosen.ravel(), gain.ravel(), lower=asked)
    if change is not None and intervals > 1:
        _add_moves(program, chosen, change)
    solution = program.solve(time_limit_s=time_limit_s, relative_gap=1e-9)
    if not len(solution.values):
        size, bound = _priced(carbon, gain, asked, change, first)
        return size, max(bound, solution.bound)
    size = solution.values[: intervals * sizes].reshape(intervals, sizes).argmax(axis=1)
    return size.astype(np.int64), solution.bound


def _add_moves(program: Program, chosen: Ints, change: Floats) -> None:
    """Charge for changes of size, and bar those from a size to one out of reach."""
    intervals, sizes = chosen.shape
    row = np.arange(intervals - 1)
    shrink = change[0, :, 0]  # from each size to the smallest: always allowed
    if shrink[-1] > 0:
        step = shrink / shrink[-1]
        moved = program.variables(intervals - 1, cost=float(shrink[-1]))
        for sign in (1.0, -1.0):
            at = np.concatenate([np.repeat(row, sizes), np.repeat(row, sizes), row])
            of = np.concatenate([chosen[1:].ravel(), chosen[:-1].ravel(), moved])
            ends = np.tile(sign * step, intervals - 1)
            worth = np.concatenate([ends, -ends, -np.ones(intervals - 1)])
            program.rows(at, of, worth, upper=0.0)
    barred = np.isinf(change)
    for size in np.flatnonzero(barred.any(axis=(0, 2))):
        # size at t and anything out of its reach at t + 1 exclude each other
        t, to = np.nonzero(barred[:, size])
        at = np.concatenate([t, row])
        of = np.concatenate([chosen[t + 1, to], chosen[row, size]])
        program.rows(at, of, np.ones(len(at)), upper=1.0)
