"""Exact placement on links that never limit, without symmetry: numbers of nodes by kind and layers.

A node of kind t holding layers s to s + k is an arc from boundary s to s + k with capacity T_t(k); a
placement's flow is the maximum flow from boundary 0 to L. The program counts the nodes on each arc.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.solve.milp import Program, Solution
from gpusched.timing.machines import Machines, Placement

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ArcResult:
    """A placement, if one was found, and the solver's account."""

    placement: Placement | None
    solution: Solution


def solve_arcs(
    machines: Machines,
    tables: tuple[Floats, ...],
    *,
    partial_inference: bool = False,
    start: tuple[Placement, Floats] | None = None,
    least: float = 0.0,
    bound: float = np.inf,
    time_limit_s: float = 60.0,
    relax: bool = False,
    seed: int = 0,
) -> ArcResult:
    """Return a placement of the largest flow, on links that never limit.

    Args:
        partial_inference: whether flow may go back to a boundary before, to enter a node late.
        start: a placement to start from and the tokens/s through each of its nodes.
        least: only flows above this are of interest; infeasible if there is none.
        relax: solve the linear relaxation; its value bounds every placement's.
    """
    layers = machines.layers
    numbers = np.bincount(machines.kind_of, minlength=len(machines.kinds))
    kind, begin, k = (
        np.array(column, np.int64)
        for column in zip(
            *(
                (t, s, k)
                for t, table in enumerate(tables)
                for k in range(1, min(len(table), layers) + 1)
                if table[k - 1] > 0
                for s in range(layers - k + 1)
            ),
            strict=True,
        )
    )
    rate = np.array([tables[t][size - 1] for t, size in zip(kind, k, strict=True)])
    program = Program(maximize=True)
    count = program.variables(len(kind), upper=numbers[kind], integer=True)
    flow = program.variables(len(kind), upper=rate * numbers[kind])
    total = program.variables(1, cost=1.0, lower=least, upper=bound)
    back = program.variables(layers if partial_inference else 0)
    program.rows(kind, count, 1.0, upper=numbers.astype(np.float64), count=len(numbers))
    arcs = np.arange(len(kind))
    program.rows(
        np.concatenate((arcs, arcs)), np.concatenate((flow, count)),
        np.concatenate((np.ones(len(arcs)), -rate)), upper=0.0,
    )  # fmt: skip
    at = np.arange(len(back))
    rows = np.concatenate((begin, begin + k, at + 1, at, [0, layers]))
    columns = np.concatenate((flow, flow, back, back, total, total))
    signs = np.concatenate(
        (-np.ones(len(flow)), np.ones(len(flow)), -np.ones(len(at)), np.ones(len(at)), [1.0, -1.0])
    )
    program.rows(rows, columns, signs, lower=0.0, upper=0.0, count=layers + 1)
    # each layer's nodes carry the flow, and so does all work together
    layer, covering = np.nonzero(
        (begin[None, :] <= np.arange(layers)[:, None])
        & (np.arange(layers)[:, None] < (begin + k)[None, :])
    )
    program.rows(
        np.concatenate((layer, np.arange(layers))),
        np.concatenate((count[covering], np.repeat(total, layers))),
        np.concatenate((rate[covering], -np.ones(layers))), lower=0.0, count=layers,
    )  # fmt: skip
    known = None
    if start is not None:
        placement, through = start
        known = np.full(program.size[1], np.nan)
        known[count], known[flow] = 0.0, 0.0
        number = {arc: i for i, arc in enumerate(zip(kind, begin, k, strict=True))}
        for used in np.flatnonzero(placement.count):
            held_there = (machines.kind_of[used], placement.first[used], placement.count[used])
            if held_there in number:
                known[count[number[held_there]]] += 1
                known[flow[number[held_there]]] += through[used]
    found = program.solve(
        time_limit_s=time_limit_s, relax=relax, relative_gap=1e-6, start=known, seed=seed
    )
    if relax or not len(found.values):
        return ArcResult(None, found)
    chosen = found.values[count].round().astype(np.int64)
    free = {t: np.flatnonzero(machines.kind_of == t).tolist() for t in range(len(numbers))}
    first, held = (np.zeros(len(machines.kind_of), np.int64) for _ in range(2))
    for arc in np.flatnonzero(chosen):
        for _ in range(chosen[arc]):
            node = free[int(kind[arc])].pop(0)
            first[node], held[node] = begin[arc], k[arc]
    return ArcResult(Placement(first, held), found)
