"""The change in instances that serves the next hour's demand at least cost (SageServe, arXiv
2502.14617, section on the hourly program).

Models i, regions j, GPU types k. One instance of model i on type k serves ``service[i, k]`` tokens a
second at the utilisation wanted; ``demand[i, j]`` must be served, ``local_share`` of it in its own
region, the rest in any. Running an instance costs ``run_usd[k]``, starting one ``start_usd[i, k]``.
Without limits on regions the models fall apart; with one GPU type each then has a closed form.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Demand:
    """One hour's question. Shapes are checked when it is made."""

    now: Ints
    """Instances, shape (models, regions, types); those that are starting count."""
    service: Floats
    """Tokens a second of one instance, shape (models, types)."""
    demand: Floats
    """Tokens a second, shape (models, regions)."""
    run_usd: Floats
    """Cost of an instance for the hour, shape (types,)."""
    start_usd: Floats
    """Cost of starting one, shape (models, types)."""
    local_share: float = 1.0
    """Share of a region's demand to be served in the region."""
    least: int = 0
    """Instances of each model in each region at the least."""
    most: Ints | None = None
    """Instances in each region and type at the most, shape (regions, types)."""

    def __post_init__(self) -> None:
        models, regions, types = self.now.shape
        for name, shape in (
            ("service", (models, types)),
            ("demand", (models, regions)),
            ("run_usd", (types,)),
            ("start_usd", (models, types)),
        ):
            values = getattr(self, name)
            if values.shape != shape:
                raise InputError(f"{name}: has shape {values.shape}, expected {shape}")
            if not np.isfinite(values).all() or (values < 0).any():
                raise InputError(f"{name}: holds a value that is negative or no number")
        if (self.service <= 0).any():
            raise InputError("service: every instance must serve more than 0 tokens a second")
        if not 0 <= self.local_share <= 1:
            raise InputError(f"local_share: must lie in 0 to 1, got {self.local_share}")
        if self.most is not None and self.most.shape != (regions, types):
            raise InputError(f"most: has shape {self.most.shape}, expected {(regions, types)}")


@dataclass(frozen=True, slots=True)
class Change:
    """Instances to add (or drop, negative), shape (models, regions, types)."""

    change: Ints
    usd: float
    """``sum of run cost x change + start cost x added``."""
    bound_usd: float
    method: str
    seconds: float


def demand_of(
    now: ArrayLike,
    service: ArrayLike,
    demand: ArrayLike,
    run_usd: ArrayLike,
    start_usd: ArrayLike,
    *,
    local_share: float = 1.0,
    least: int = 0,
    most: ArrayLike | None = None,
) -> Demand:
    """Return the question from plain sequences; costs broadcast.

    Raises:
        InputError: shapes do not match, or a value is out of range.
    """
    held = np.asarray(now, np.int64)
    if held.ndim != 3:
        raise InputError(f"now: expected (models, regions, types), got shape {held.shape}")
    models, _, types = held.shape
    return Demand(
        held,
        np.asarray(service, np.float64),
        np.asarray(demand, np.float64),
        np.array(np.broadcast_to(np.asarray(run_usd, np.float64), (types,))),
        np.array(np.broadcast_to(np.asarray(start_usd, np.float64), (models, types))),
        local_share,
        least,
        None if most is None else np.asarray(most, np.int64),
    )


def instances(question: Demand, *, time_limit_s: float = 30.0, gap: float = 1e-6) -> Change:
    """Return the cheapest change that serves the demand.

    Raises:
        InfeasibleError: regions cannot hold enough instances; says which region or model.
    """
    begun = perf_counter()
    models, _, types = question.now.shape
    if question.most is None and types == 1:
        change = np.stack([closed_form(question, i) for i in range(models)])
        usd = cost(question, change)
        return Change(change, usd, usd, "closed form", perf_counter() - begun)
    if question.most is None:
        parts = [by_program(_only(question, i), time_limit_s, gap) for i in range(models)]
        change = np.concatenate([part.change for part in parts])
        bound = sum(part.bound_usd for part in parts)
        return Change(
            change, cost(question, change), bound, "HiGHS, a model each", perf_counter() - begun
        )
    return by_program(question, time_limit_s, gap)


def closed_form(question: Demand, model: int) -> Ints:
    """Return the change of one model, shape (regions, 1), where there is one GPU type and no limit.

    Every region gets what it must have; what the total still lacks goes first to regions that run
    more already, which is cheaper than starting anywhere.
    """
    service = question.service[model, 0]
    now = question.now[model, :, 0]
    demand = question.demand[model]
    needed = np.maximum(question.least, _ceil(question.local_share * demand / service))
    total = max(int(needed.sum()), int(_ceil(np.array(demand.sum() / service))))
    lacking = total - int(needed.sum())
    spare = np.maximum(now - needed, 0)
    kept = np.minimum(spare, np.maximum(lacking - (np.cumsum(spare) - spare), 0))
    needed = needed + kept
    needed[int(demand.argmax())] += lacking - int(kept.sum())
    return np.asarray(needed - now)[:, None]


def by_program(question: Demand, time_limit_s: float = 30.0, gap: float = 1e-6) -> Change:
    """Solve (C-1) to (C-7) with HiGHS; additions are split from removals without big-M, for starting
    costs are never negative.

    Raises:
        InfeasibleError: regions cannot hold enough instances.
    """
    begun = perf_counter()
    models, regions, types = question.now.shape
    shape = question.now.shape
    program = Program()
    held = program.variables(shape, cost=np.broadcast_to(question.run_usd, shape), integer=True)
    added = program.variables(shape, cost=np.broadcast_to(question.start_usd[:, None, :], shape))
    cells = np.arange(held.size)
    now = question.now.ravel().astype(np.float64)
    program.rows(
        np.concatenate([cells, cells]), np.concatenate([held.ravel(), added.ravel()]),
        np.repeat([1.0, -1.0], held.size), upper=now,
    )  # fmt: skip
    served = np.broadcast_to(question.service[:, None, :], shape)
    local = np.repeat(np.arange(models * regions), types)
    program.rows(
        local, held.ravel(), served.ravel(), lower=question.local_share * question.demand.ravel()
    )
    program.rows(
        np.repeat(np.arange(models), regions * types), held.ravel(), served.ravel(),
        lower=question.demand.sum(axis=1),
    )  # fmt: skip
    if question.least:
        program.rows(local, held.ravel(), 1.0, lower=float(question.least))
    if question.most is not None:
        place = np.broadcast_to(np.arange(regions * types).reshape(1, regions, types), shape)
        program.rows(
            place.ravel(), held.ravel(), 1.0, upper=question.most.ravel().astype(np.float64)
        )
    solution = program.solve(time_limit_s=time_limit_s, relative_gap=gap)
    if not len(solution.values):
        raise InfeasibleError(_why_infeasible(question))
    change = np.rint(solution.values[held]).astype(np.int64) - question.now
    fixed = float((question.now * question.run_usd).sum())
    return Change(
        change, cost(question, change), solution.bound - fixed, "HiGHS", perf_counter() - begun
    )


def cost(question: Demand, change: Ints) -> float:
    """Return what a change costs, (C-1)."""
    added = np.maximum(change, 0)
    running = (change * question.run_usd).sum()
    return float(running + (added * question.start_usd[:, None, :]).sum())


def unmet(question: Demand, change: Ints) -> list[str]:
    """Return the conditions that a change breaks, in words; none if it is feasible."""
    held = question.now + change
    broken = []
    if (held < question.least).any():
        broken.append(f"fewer than {question.least} instances somewhere")
    served = (held * question.service[:, None, :]).sum(axis=2)
    local = question.local_share * question.demand
    for i, j in np.argwhere(served < local - 1e-6 * np.maximum(local, 1)):
        broken.append(f"model {i}, region {j}: serves {served[i, j]:g} of {local[i, j]:g} tokens/s")
    total, asked = served.sum(axis=1), question.demand.sum(axis=1)
    for i in np.flatnonzero(total < asked - 1e-6 * np.maximum(asked, 1)):
        broken.append(f"model {i}: all regions serve {total[i]:g} of {asked[i]:g} tokens/s")
    if question.most is not None:
        for j, k in np.argwhere(held.sum(axis=0) > question.most):
            broken.append(f"region {j}, type {k}: {held[:, j, k].sum()} of {question.most[j, k]}")
    return broken


def _only(question: Demand, model: int) -> Demand:
    one = slice(model, model + 1)
    return Demand(
        question.now[one], question.service[one], question.demand[one], question.run_usd,
        question.start_usd[one], question.local_share, question.least,
    )  # fmt: skip


def _ceil(values: Floats) -> Ints:
    return np.asarray(np.ceil(values - 1e-9 * np.maximum(values, 1.0)), np.int64)


def _why_infeasible(question: Demand) -> str:
    assert question.most is not None
    fastest = question.service.max(axis=1)
    fewest = np.maximum(
        question.least, _ceil(question.local_share * question.demand / fastest[:, None])
    )
    room, needed = question.most.sum(axis=1), fewest.sum(axis=0)
    for j in np.flatnonzero(needed > room):
        return (
            f"region {j}: its own demand needs {needed[j]} instances at least, it can hold "
            f"{room[j]}; raise its limit or lower local_share"
        )
    total = int(_ceil(question.demand.sum(axis=1) / fastest).sum())
    return (
        f"all regions together can hold {room.sum()} instances; the demand needs about {total} of "
        "the fastest type, or more where slower types or other models take the room"
    )
