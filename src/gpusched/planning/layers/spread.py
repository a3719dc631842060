"""Spreading a flow evenly, so that no node works harder than the placement makes it."""

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.layers.flow import Network, open_links, solve_flow
from gpusched.solve.milp import Program
from gpusched.timing.machines import Placement

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LEVELS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.0)
"""Of a node's or link's use, at which the next token costs more."""


def spread_flow(
    network: Network,
    placement: Placement,
    *,
    partial_inference: bool = False,
    alive: Flags | None = None,
) -> tuple[float, Floats]:
    """Return the maximum flow and, of all flows that attain it, one that loads nodes evenly, shape
    (n + 1, n + 1).

    A linear program: the cost of a node's use is convex and piecewise linear, and so is that of a
    link's share of its end's flow, more lightly.
    """
    best = solve_flow(network, placement, partial_inference=partial_inference, alive=alive)
    if best.tokens_per_s <= 0:
        return 0.0, best.flows
    n, total = network.n, best.tokens_per_s
    rates = network.rates(placement.count)
    if alive is not None:
        rates = np.where(alive, rates, 0.0)
    edges = open_links(network, placement, partial_inference=partial_inference)
    edges[:n] &= (rates > 0)[:, None]
    edges[:, :n] &= (rates > 0)[None, :]
    origin, to = np.nonzero(edges)
    nodes = np.flatnonzero(rates > 0)
    place = np.full(n + 1, -1)
    place[nodes] = np.arange(len(nodes))
    program = Program()
    f = program.variables(len(origin), upper=np.minimum(network.links[origin, to], total))
    widths = np.diff((0.0, *LEVELS))
    steep = np.arange(1.0, len(LEVELS) + 1) ** 2
    # by share of a node's capacity, the last part with room for rounding
    upper = rates[nodes][:, None] * widths
    upper[:, -1] *= 1 + 1e-6
    x = program.variables(upper.shape, cost=steep[None, :], upper=upper)
    # by share of the flow on the widest link an end could use instead
    out = np.maximum(edges.sum(axis=1)[origin], 1)
    half = total / out
    spare = program.variables(len(origin), cost=0.05)
    ids = np.arange(len(origin))
    program.rows(
        np.concatenate((ids, ids)), np.concatenate((f, spare)),
        np.concatenate((np.ones(len(ids)), -np.ones(len(ids)))), upper=half, count=len(ids),
    )  # fmt: skip
    into, outof = to < n, origin < n
    _balance(program, place[to[into]], f[into], x, len(nodes))
    _balance(program, place[origin[outof]], f[outof], x, len(nodes))
    program.row(f[~outof], lower=total * (1 - 1e-7))
    found = program.solve(relax=True, time_limit_s=10.0)
    if not len(found.values):
        return total, best.flows
    flows = np.zeros((n + 1, n + 1))
    flows[origin, to] = np.maximum(found.values[f], 0.0)
    return total, flows


def _balance(
    program: Program, rows: NDArray[np.int64], f: NDArray[np.int64], x: NDArray[np.int64], n: int
) -> None:
    """Tie the flow through each node to its use."""
    parts = np.repeat(np.arange(n), x.shape[1])
    program.rows(
        np.concatenate((rows, parts)), np.concatenate((f, x.ravel())),
        np.concatenate((np.ones(len(rows)), -np.ones(x.size))), lower=0.0, upper=0.0, count=n,
    )  # fmt: skip
