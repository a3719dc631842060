"""GPUs for each model of a cascade when thresholds are given.

``latency[i][f]`` is the latency of model i on f GPUs with the best parallelism, infinite where it
does not fit. The slowest model counts (the published objective), or the mean over a request's way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Allocation:
    """GPUs by model."""

    gpus: tuple[int, ...]
    latency_s: tuple[float, ...]
    """Of each model."""
    value_s: float
    """Objective: the slowest model's latency, or the mean over a request's way."""


def slowest_model(latency: Sequence[ArrayLike], gpus: int) -> Allocation:
    """Return the GPUs that make the slowest model as fast as can be.

    The optimum is an entry of the tables, so bisection over them is exact: a latency v can be had if
    the fewest GPUs that give every model v or less fit. What is left over goes to the slowest.

    Raises:
        InfeasibleError: the models do not fit; says how many GPUs they need.
    """
    tables = _checked(latency, gpus)
    values = np.unique(np.concatenate([table[np.isfinite(table)] for table in tables]))
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        if sum(_fewest(tables, values[middle])) <= gpus:
            high = middle
        else:
            low = middle + 1
    chosen = _fewest(tables, values[low])
    while sum(chosen) < gpus:
        slowest = max(range(len(tables)), key=lambda i: tables[i][chosen[i]])
        if chosen[slowest] + 1 >= len(tables[slowest]):
            break
        better = np.flatnonzero(
            tables[slowest][chosen[slowest] + 1 :] < tables[slowest][chosen[slowest]]
        )
        if not len(better) or sum(chosen) + int(better[0]) + 1 > gpus:
            break
        chosen[slowest] += int(better[0]) + 1
    taken = tuple(float(table[f]) for table, f in zip(tables, chosen, strict=True))
    return Allocation(tuple(chosen), taken, max(taken))


def whole_way(latency: Sequence[ArrayLike], reach: ArrayLike, gpus: int) -> Allocation:
    """Return the GPUs that make the mean of ``sum of reach x latency`` least, by dynamic programming
    over GPUs, O(models gpus^2).

    Raises:
        InfeasibleError: the models do not fit; says how many GPUs they need.
    """
    tables = _checked(latency, gpus)
    weights = np.asarray(reach, np.float64)
    value = np.zeros(gpus + 1)
    choices = []
    for weight, table in zip(weights[::-1], tables[::-1], strict=True):
        options = np.full((gpus + 1, gpus + 1), np.inf)
        for f in range(min(len(table), gpus + 1)):
            options[f:, f] = (
                weight * table[f] + value[: gpus + 1 - f] if np.isfinite(table[f]) else np.inf
            )
        choices.append(options.argmin(axis=1))
        value = options.min(axis=1)
    left, chosen = gpus, []
    for choice in choices[::-1]:
        chosen.append(int(choice[left]))
        left -= chosen[-1]
    taken = tuple(float(table[f]) for table, f in zip(tables, chosen, strict=True))
    return Allocation(tuple(chosen), taken, float(weights @ np.array(taken)))


def by_program(
    latency: Sequence[ArrayLike],
    gpus: int,
    *,
    usd_per_gpu_hour: ArrayLike = 0.0,
    usd_per_hour: float = np.inf,
    time_limit_s: float = 30.0,
) -> Allocation:
    """Return the same as ``slowest_model`` from the mixed-integer program (B-1) to (B-5), under a
    limit on cost as well.

    Raises:
        InfeasibleError: the models do not fit, or not at this cost.
    """
    tables = _checked(latency, gpus)
    prices = np.broadcast_to(np.asarray(usd_per_gpu_hour, np.float64), (len(tables),))
    program = Program()
    slowest = program.variables(1, cost=1.0)
    chosen, counts, owners = [], [], []
    for i, table in enumerate(tables):
        x = program.variables(len(table), upper=np.isfinite(table), integer=True)
        finite = np.where(np.isfinite(table), table, 0.0)
        program.row(x, lower=1.0, upper=1.0)
        program.row(np.append(x, slowest), np.append(finite, -1.0), upper=0.0)
        chosen.append(x)
        counts.append(np.arange(len(table), dtype=np.float64))
        owners.append(np.full(len(table), i))
    every, count = np.concatenate(chosen), np.concatenate(counts)
    program.row(every, count, upper=float(gpus))
    if np.isfinite(usd_per_hour):
        program.row(every, count * prices[np.concatenate(owners)], upper=usd_per_hour)
    solution = program.solve(time_limit_s=time_limit_s)
    if not len(solution.values):
        raise InfeasibleError(
            f"cascade: no allocation of {gpus} GPUs costs {usd_per_hour:g} USD an hour or less"
        )
    taken = [int(solution.values[x].argmax()) for x in chosen]
    latencies = tuple(float(table[f]) for table, f in zip(tables, taken, strict=True))
    return Allocation(tuple(taken), latencies, max(latencies))


def _fewest(tables: Sequence[Floats], value: float) -> list[int]:
    return [int(np.argmax(t <= value)) if (t <= value).any() else len(t) * 10**6 for t in tables]


def _checked(latency: Sequence[ArrayLike], gpus: int) -> list[Floats]:
    tables = [np.asarray(table, np.float64)[: gpus + 1] for table in latency]
    needs = []
    for index, whole in enumerate(latency):
        fits = np.flatnonzero(np.isfinite(np.asarray(whole, np.float64)))
        if not len(fits):
            raise InfeasibleError(f"cascade: model {index} fits on no number of GPUs tried")
        needs.append(int(fits[0]))
    if sum(needs) > gpus:
        raise InfeasibleError(
            f"cascade: the models need {' + '.join(map(str, needs))} = {sum(needs)} GPUs at least, "
            f"the cluster has {gpus}"
        )
    return tables
