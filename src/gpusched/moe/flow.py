"""The placement program and three exact ways to solve it.

With items i of layer l (an expert, or one of its copies) and servers s::

    min  sum cost[l, e(i), s] x[l, i, s]
    s.t. every item on one server, copies of an expert on different servers
         at most layer_cap[l, s] items of a layer on a server, at most total_cap[s] in all

The rows form a network matrix, so the linear program has whole-numbered vertices: no branch and
bound is needed (arXiv 2508.09229 gives the program to an integer solver).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.moe.exchange import fill_exchanges, insert_items, potentials, relieve

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Method = Literal["exchange", "ortools", "lp"]

PATHS = 500
"""Moves between reports of progress."""
LARGEST = 1 << 40
"""Integer that the largest cost is scaled to."""


@dataclass(frozen=True, slots=True)
class Program:
    """Costs and caps of a placement."""

    cost: Floats
    """Shape (layers, experts, servers)."""
    expert_of: Ints
    """The expert of each item, shape (layers, items)."""
    layer_cap: Ints
    """Shape (layers, servers)."""
    total_cap: Ints
    """Shape (servers,)."""

    def value(self, at: Ints) -> float:
        """Return the cost of a placement, ``at`` the server of each item."""
        layer = np.arange(len(at))[:, None]
        return float(self.cost[layer, self.expert_of, at].sum())

    def check(self, at: Ints) -> None:
        """Raise ValueError unless a placement keeps every cap."""
        layers, servers = self.layer_cap.shape
        if at.shape != self.expert_of.shape or at.min() < 0 or at.max() >= servers:
            raise ValueError("not a server for every item")
        count = server_counts(at, servers)
        if (count > self.layer_cap).any() or (count.sum(axis=0) > self.total_cap).any():
            raise ValueError("a cap is exceeded")
        pair = (np.arange(layers)[:, None] * self.cost.shape[1] + self.expert_of) * servers + at
        if len(np.unique(pair)) < pair.size:
            raise ValueError("two copies of an expert on one server")


def server_counts(at: Ints, servers: int) -> Ints:
    """Return the items of each layer on each server, shape (layers, servers)."""
    flat = np.arange(len(at))[:, None] * servers + at
    return np.bincount(flat.ravel(), minlength=len(at) * servers).reshape(len(at), servers)


def check_caps(program: Program) -> None:
    """Raise InfeasibleError naming servers that cannot hold what only they may hold (Hall)."""
    layers, items = program.expert_of.shape
    room = np.minimum(program.layer_cap, program.total_cap[None, :]).sum(axis=1)
    if room.min() < items:
        layer = int(room.argmin())
        raise InfeasibleError(
            f"layer {layer} has {items} experts, but its servers together may hold "
            f"{int(room[layer])} of them; raise experts_per_layer or add servers"
        )
    by_layer = program.layer_cap.sum(axis=0)
    held = np.minimum(by_layer, program.total_cap)
    if held.sum() < layers * items:
        full = np.flatnonzero(program.total_cap < by_layer)
        rest = np.flatnonzero(program.total_cap >= by_layer)
        parts = [f"{int(program.total_cap[full].sum())} on servers {_names(full)} by their caps"]
        if len(rest):
            parts.append(f"{int(by_layer[rest].sum())} on servers {_names(rest)} by the layer's")
        raise InfeasibleError(
            f"{layers * items} experts of {layers} layers must be placed, but there is room for "
            f"{int(held.sum())}: {' and '.join(parts)}; raise the caps or add servers"
        )
    most = _copies(program).max(axis=1)
    allowed = (program.layer_cap > 0).sum(axis=1)
    if (most > allowed).any():
        layer = int((most - allowed).argmax())
        raise InfeasibleError(
            f"an expert of layer {layer} has {most[layer]} copies, "
            f"but only {allowed[layer]} servers may hold one each"
        )


def _names(servers: Ints) -> str:
    if len(servers) > 2 and servers[-1] - servers[0] == len(servers) - 1:
        return f"{servers[0]} to {servers[-1]}"
    return ", ".join(str(s) for s in servers[:8]) + (", ..." if len(servers) > 8 else "")


def _copies(program: Program) -> Ints:
    """Return the items of each expert, shape (layers, experts)."""
    layers, experts = program.cost.shape[:2]
    flat = np.arange(layers)[:, None] * experts + program.expert_of
    return np.bincount(flat.ravel(), minlength=layers * experts).reshape(layers, experts)


def solve(
    program: Program,
    method: Method = "exchange",
    start: Ints | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Ints, float]:
    """Return the server of each item at least cost, shape (layers, items), and a lower bound.

    ``start`` is a placement that is optimal if the total caps are ignored, where one is known.

    Raises:
        InfeasibleError: no placement keeps the caps, with the servers that are too few.
        InputError: ``ortools`` is asked for and not installed.
    """
    check_caps(program)
    scale = LARGEST / (float(np.abs(program.cost).max()) or 1.0)
    cost = np.rint(program.cost * scale).astype(np.int64)
    if method == "lp":
        return _by_lp(program)
    if method == "ortools":
        at = _by_ortools(program, cost)
        return at, program.value(at)
    at, bound = _by_exchange(program, cost, start, progress)
    return at, bound / scale


def _by_exchange(
    program: Program, cost: Ints, start: Ints | None, progress: Callable[[str], None]
) -> tuple[Ints, float]:
    layers, items = program.expert_of.shape
    servers, experts = len(program.total_cap), cost.shape[1]
    nodes = layers * servers + servers + 2
    at = np.full((layers, items), -1, np.int64)
    hosted = np.zeros((layers, experts, servers), np.uint8)
    cheapest = np.empty((layers, servers, servers), np.int64)
    choice = np.empty((layers, servers, servers), np.int64)
    dirty = np.zeros((layers, servers), np.uint8)
    distance, parent = np.empty(nodes, np.int64), np.empty(nodes, np.int64)
    if start is None:
        count = np.zeros((layers, servers), np.int64)
        # those with most at stake first, so that few have to make way later
        stake = (cost.max(axis=2) - cost.min(axis=2))[np.arange(layers)[:, None], program.expert_of]
        full = insert_items(
            program.expert_of, np.argsort(-stake, axis=1, kind="stable"), cost, program.layer_cap, at, hosted, count,
            cheapest, choice, dirty, distance, parent,
        )  # fmt: skip
        if full >= 0:
            raise InfeasibleError(f"layer {full}: no room for another copy on a different server")
    else:
        at[:] = start
        count = server_counts(at, servers)
        hosted[np.arange(layers)[:, None], program.expert_of, at] = 1
        fill_exchanges(program.expert_of, cost, at, hosted, cheapest, choice)
    total = count.sum(axis=0)
    potential = np.empty(nodes, np.int64)
    if not potentials(
        program.layer_cap, program.total_cap, count, total, cheapest, potential, False
    ):
        raise ValueError("start is not optimal without the total caps")
    arcs = layers * servers * (servers + 3) + 2 * servers
    settled = np.empty(nodes, np.uint8)
    heap_key, heap_node = np.empty(arcs, np.int64), np.empty(arcs, np.int64)
    left = 1
    while left > 0:
        left = relieve(
            program.expert_of, cost, program.layer_cap, program.total_cap, at, hosted, count,
            total, cheapest, choice, dirty, potential, distance, parent, settled, heap_key,
            heap_node, PATHS,
        )  # fmt: skip
        if left > 0:
            progress(f"placing experts: {left} over the caps of their servers")
    if left < 0:
        reached = np.flatnonzero(settled[layers * servers : layers * servers + servers])
        raise InfeasibleError(
            f"servers {_names(reached)} may hold {int(program.total_cap[reached].sum())} experts, "
            f"but {int(total[reached].sum())} can go nowhere else; raise their caps"
        )
    potentials(program.layer_cap, program.total_cap, count, total, cheapest, potential, True)
    return at, dual_bound(program, cost, potential)


def dual_bound(program: Program, cost: Ints, potential: Ints) -> float:
    """Return the dual value of node potentials: no placement costs less, whatever they are.

    Server prices are ``mu[s] = max(0, sink - potential[s])``, those of a layer on a server
    ``v[l, s] = max(0, potential[s] - potential[l, s])``; an expert with r copies pays at least the
    r cheapest of ``cost + v + mu``.
    """
    layers, servers = program.layer_cap.shape
    inner = potential[: layers * servers].reshape(layers, servers)
    outer = potential[layers * servers : layers * servers + servers]
    mu = np.maximum(potential[layers * servers + servers] - outer, 0)
    v = np.maximum(outer[None, :] - inner, 0)
    priced = cost + (v + mu[None, :])[:, None, :]
    copies = _copies(program)
    most = int(copies.max())
    if most == 1:
        least = int(priced.min(axis=2)[copies == 1].sum())
    else:
        ascending = np.sort(priced, axis=2)[:, :, :most].cumsum(axis=2)
        paid = np.take_along_axis(ascending, np.maximum(copies - 1, 0)[:, :, None], 2)[:, :, 0]
        least = int(paid[copies > 0].sum())
    return float(least - int((program.layer_cap * v).sum()) - int((program.total_cap * mu).sum()))


def _arcs(program: Program) -> tuple[Ints, Ints, Ints, Ints]:
    """Return the distinct (layer, expert) pairs as layer and expert, the copies of each, and the
    pair of every item."""
    experts = program.cost.shape[1]
    flat = np.arange(len(program.expert_of))[:, None] * experts + program.expert_of
    pairs, inverse, copies = np.unique(flat.ravel(), return_inverse=True, return_counts=True)
    return pairs // experts, pairs % experts, copies, inverse


def _by_ortools(program: Program, cost: Ints) -> Ints:
    try:
        from ortools.graph.python.min_cost_flow import SimpleMinCostFlow
    except ImportError:
        raise InputError(
            "method ortools needs OR-tools; pip install gpusched[ortools], or leave the method out"
        ) from None
    layers, servers = program.layer_cap.shape
    layer, expert, copies, inverse = _arcs(program)
    pairs = len(layer)
    inner = pairs + np.arange(layers * servers).reshape(layers, servers)
    outer = pairs + layers * servers + np.arange(servers)
    sink = pairs + layers * servers + servers
    flow = SimpleMinCostFlow()
    first = flow.add_arcs_with_capacity_and_unit_cost(
        np.repeat(np.arange(pairs), servers), inner[layer].ravel(),
        np.ones(pairs * servers, np.int64), cost[layer, expert].ravel(),
    )  # fmt: skip
    flow.add_arcs_with_capacity_and_unit_cost(
        inner.ravel(), np.tile(outer, layers), program.layer_cap.ravel(), np.zeros(inner.size, int)
    )
    flow.add_arcs_with_capacity_and_unit_cost(
        outer, np.full(servers, sink), program.total_cap, np.zeros(servers, int)
    )
    flow.set_nodes_supplies(np.arange(pairs), copies)
    flow.set_nodes_supplies(np.array([sink]), np.array([-int(copies.sum())]))
    status = flow.solve()
    if status != flow.OPTIMAL:
        raise InfeasibleError(f"the caps admit no placement (OR-tools: {status.name})")
    used = np.asarray(flow.flows(first)).reshape(pairs, servers) > 0
    return _spread(program, used, inverse)


def _by_lp(program: Program) -> tuple[Ints, float]:
    from gpusched.solve.milp import Program as Rows

    layers, servers = program.layer_cap.shape
    layer, expert, copies, inverse = _arcs(program)
    pairs = len(layer)
    rows = Rows()
    x = rows.variables((pairs, servers), cost=program.cost[layer, expert], upper=1.0)
    each = np.broadcast_to(np.arange(pairs)[:, None], x.shape)
    rows.rows(each, x, 1.0, lower=copies.astype(float), upper=copies.astype(float))
    inner = layer[:, None] * servers + np.arange(servers)
    caps = program.layer_cap.ravel().astype(float)
    rows.rows(inner, x, 1.0, upper=caps, count=layers * servers)
    outer = np.broadcast_to(np.arange(servers), x.shape)
    rows.rows(outer, x, 1.0, upper=program.total_cap.astype(float), count=servers)
    found = rows.solve(time_limit_s=600.0)
    if found.status == "infeasible":
        raise InfeasibleError("the caps admit no placement (HiGHS)")
    used = found.values.reshape(pairs, servers) > 0.5
    return _spread(program, used, inverse), found.bound


def _spread(program: Program, used: NDArray[np.bool_], inverse: Ints) -> Ints:
    """Give the servers used by each (layer, expert) to its items, one each."""
    order = np.argsort(inverse, kind="stable")
    at = np.empty(len(inverse), np.int64)
    at[order] = np.nonzero(used)[1]
    return at.reshape(program.expert_of.shape)
