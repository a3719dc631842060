"""The fewest instance-hours that any controller can need: all demand known ahead.

Fluid: an instance serves at most its rate in every interval. Two forms: whole instances for demand
that cannot wait, exact by levels; and a linear program in which deferred work moves within its
deadlines, whose value no schedule of whole instances goes below.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def keep_through_gaps(need: ArrayLike, start_steps: float) -> Ints:
    """Return the cheapest number of instances at least ``need`` in every step, where starting one costs
    as much as running it for ``start_steps``.

    The k-th instance is wanted where need is at least k; it stays on through a gap that is shorter
    than a start, and is off otherwise. Levels do not interfere, so that is optimal (the matrix of the
    linear program is totally unimodular). What runs in the first step has cost nothing to start.
    """
    wanted = np.asarray(need, np.int64)
    held = wanted.copy()
    for level in range(1, int(wanted.max(initial=0)) + 1):
        on = np.flatnonzero(wanted >= level)
        if on[0] <= start_steps:
            on = np.concatenate(([0], on)) if on[0] else on
            held[0] = max(held[0], level)
        gaps = np.diff(on)
        for at in np.flatnonzero((gaps > 1) & (gaps - 1 <= start_steps)):
            held[on[at] : on[at + 1]] = np.maximum(held[on[at] : on[at + 1]], level)
    return held


def cost_of(held: ArrayLike, start_steps: float) -> float:
    """Return instance-steps with those of starting; the first step's instances are free to start."""
    number = np.asarray(held, np.float64)
    return float(number.sum() + start_steps * np.maximum(np.diff(number), 0.0).sum())


@dataclass(frozen=True, slots=True)
class Bound:
    """The linear program's optimum. Arrays have one entry a step."""

    instance_steps: float
    instances: Floats
    deferred: Floats
    """Deferred work served, in the unit of demand times steps."""


def fluid_bound(
    demand: ArrayLike,
    service: ArrayLike,
    *,
    start_steps: float = 0.0,
    arrived: ArrayLike | None = None,
    due: ArrayLike | None = None,
    least: float = 0.0,
    time_limit_s: float = 30.0,
) -> Bound:
    """Return the least instance-steps that serve ``demand`` in each step, and deferred work between its
    arrival and its deadline.

    ``service`` is one instance's rate, a number or one a step. ``arrived`` and ``due`` are deferred
    work by step of arrival and of deadline, shape (steps,); what is due after the end counts as due at
    the end.

    Raises:
        InputError: the series differ in length.
        InfeasibleError: deferred work is due before it arrives.
    """
    load = np.asarray(demand, np.float64)
    rate = np.broadcast_to(np.asarray(service, np.float64), load.shape)
    n = len(load)
    program = Program()
    held = program.variables((n,), cost=1.0)
    up = program.variables((n,), cost=start_steps)
    rows = np.arange(n)
    columns, values = [held], [rate]
    if arrived is not None and due is not None:
        come, late = np.cumsum(arrived), np.cumsum(due)
        if len(come) != n or len(late) != n:
            raise InputError(f"arrived and due: expected {n} values, got {len(come)}, {len(late)}")
        work = program.variables((n,))
        done = program.variables((n,))
        program.rows(
            np.concatenate([rows, rows, rows[1:]]), np.concatenate([done, work, done[:-1]]),
            np.concatenate([np.ones(n), -np.ones(n), -np.ones(n - 1)]), lower=0.0, upper=0.0,
        )  # fmt: skip
        late[-1] = come[-1]
        program.rows(rows, done, 1.0, lower=late, upper=come)
        columns.append(work)
        values.append(-np.ones(n))
    program.rows(
        np.tile(rows, len(columns)), np.concatenate(columns), np.concatenate(values), lower=load
    )
    program.rows(rows, held, 1.0, lower=least)
    if n > 1:
        program.rows(
            np.tile(rows[1:], 3) - 1, np.concatenate([up[1:], held[1:], held[:-1]]),
            np.repeat([1.0, -1.0, 1.0], n - 1), lower=0.0,
        )  # fmt: skip
    solution = program.solve(time_limit_s=time_limit_s)
    if not len(solution.values):
        raise InfeasibleError("deferred work is due before it arrives; see arrived and due")
    moved = solution.values[work] if arrived is not None and due is not None else np.zeros(n)
    return Bound(solution.bound, solution.values[held], moved)
