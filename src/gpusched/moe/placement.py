"""Experts on the servers of a network so that tokens make the fewest hops (arXiv 2508.09229)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.moe.eplb import replica_counts
from gpusched.moe.flow import Method, Program, check_caps, server_counts, solve
from gpusched.moe.loads import check_loads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Hosts = Literal["consecutive", "all"] | Sequence[int]


@dataclass(frozen=True, slots=True)
class ExpertPlacement:
    """The server of every expert, or of each of its copies."""

    at: Ints
    """Shape (layers, items)."""
    expert_of: Ints
    """Shape (layers, items); 0, 1, 2, ... where no expert has copies."""
    weight: Floats
    """Activations per token of each item, shape (layers, items)."""
    hops: float
    """Of one token through all layers and chosen experts, there and back."""
    objective: float
    """Hops plus the cost of moves."""
    bound: float
    """No placement under the caps has a smaller objective; nan where not known."""
    moved: int
    """Items not where they were before."""
    method: str
    seconds: float

    @property
    def hops_per_activation(self) -> float:
        """Hops of one token to one chosen expert and back."""
        return self.hops / float(self.weight.sum())

    @property
    def gap(self) -> float:
        """Share by which the objective may exceed the optimum."""
        return (self.objective - self.bound) / self.objective if self.objective else 0.0

    def server_load(self, servers: int) -> Floats:
        """Return activations per token by layer and server, shape (layers, servers)."""
        flat = np.arange(len(self.at))[:, None] * servers + self.at
        load = np.bincount(flat.ravel(), self.weight.ravel(), minlength=len(self.at) * servers)
        return np.asarray(load, np.float64).reshape(len(self.at), servers)


def trip_hops(hops: ArrayLike, layers: int, hosts: Hosts = "consecutive") -> Floats:
    """Return hops of a token from the server with a layer's attention to each server and on to the
    attention of the next layer, shape (layers, servers); the last layer's returns to its own.

    ``hosts`` are the servers with attention: ``consecutive`` puts layer l on server l mod S, ``all``
    spreads every layer's tokens evenly over all servers (data-parallel attention), where the
    result returns to the server it came from.

    Raises:
        InputError: hosts that are no servers, or not one a layer.
    """
    d = np.asarray(hops, np.float64)
    servers = len(d)
    if isinstance(hosts, str):
        if hosts == "all":
            return np.tile(np.asarray(2.0 * d.mean(axis=0), np.float64), (layers, 1))
        if hosts != "consecutive":
            raise InputError(f"hosts: consecutive, all or one server a layer, got {hosts!r}")
        host = np.arange(layers) % servers
    else:
        host = np.asarray(hosts, np.int64)
        if len(host) != layers:
            raise InputError(
                f"hosts: needs one server for each of {layers} layers, got {len(host)}"
            )
        if host.min() < 0 or host.max() >= servers:
            raise InputError(f"hosts: servers are 0 to {servers - 1}, got {int(host.max())}")
    onward = np.append(host[1:], host[-1])
    return d[host] + d[:, onward].T


def place_experts(
    weight: ArrayLike,
    trips: ArrayLike,
    *,
    layer_cap: ArrayLike,
    total_cap: ArrayLike | None = None,
    replicas: int = 0,
    previous: ArrayLike | None = None,
    move_cost: float = 0.0,
    method: Literal["auto"] | Method = "auto",
    progress: Callable[[str], None] = lambda message: None,
) -> ExpertPlacement:
    """Return the placement with the fewest hops per token, proven optimal.

    ``weight`` are activations per token, shape (layers, experts); ``trips`` are hops to a server and
    on, shape (layers, servers), from ``trip_hops``. ``layer_cap`` and ``total_cap`` bound the items
    of one layer and of all layers on a server. ``replicas`` extra copies a layer go to the experts
    with most load per copy; a copy takes an equal share and copies lie on different servers.
    With ``previous`` (the server of each item, from an earlier placement) every move costs
    ``move_cost`` hops per token.

    Where caps on totals do not bind, filling the nearest servers with the heaviest experts is
    optimal; else shortest paths of exchanges. ``ortools`` and ``lp`` are other ways to the same.

    Raises:
        InputError: shapes that do not match, loads that are no loads.
        InfeasibleError: caps too small, with the servers that are too few.
    """
    began = perf_counter()
    w = check_loads(weight, name="weight")
    p = np.asarray(trips, np.float64)
    layers, experts = w.shape
    if p.ndim != 2 or len(p) != layers or not np.isfinite(p).all():
        raise InputError(f"trips: must be finite, of shape ({layers}, servers), got {p.shape}")
    if replicas < 0 or not 0 <= move_cost < np.inf:
        raise InputError("replicas and move_cost must be at least 0")
    expert_of = (
        np.stack(
            [
                np.repeat(np.arange(experts), c)
                for c in replica_counts(w, experts + replicas, p.shape[1])
            ]
        )
        if replicas
        else np.tile(np.arange(experts), (layers, 1))
    )
    copies = np.stack([np.bincount(row, minlength=experts) for row in expert_of])
    each = w / copies
    cost = each[:, :, None] * p[:, None, :]
    caps = np.broadcast_to(np.asarray(layer_cap, np.int64), p.shape)
    totals = (
        caps.sum(axis=0)
        if total_cap is None
        else np.broadcast_to(np.asarray(total_cap, np.int64), p.shape[1:])
    )
    if caps.min() < 0 or totals.min() < 0:
        raise InputError("layer_cap and total_cap must be at least 0")
    old = None if previous is None else np.asarray(previous, np.int64)
    if old is not None:
        if old.shape != expert_of.shape or old.min() < 0 or old.max() >= p.shape[1]:
            raise InputError(
                f"previous: must be servers 0 to {p.shape[1] - 1} in shape {expert_of.shape}"
            )
        cost += move_cost
        stay = np.arange(layers)[:, None]
        cost[stay, expert_of, old] = np.take_along_axis(p, old, 1) * np.take_along_axis(
            each, expert_of, 1
        )
    program = Program(cost, expert_of, np.ascontiguousarray(caps), np.ascontiguousarray(totals))
    separable = not replicas and (old is None or move_cost == 0.0)
    if method == "auto":
        check_caps(program)
        at = nearest_first(w, p, program.layer_cap) if separable else None
        if at is not None and (server_counts(at, p.shape[1]).sum(axis=0) <= totals).all():
            bound, used = program.value(at), "sort"
        else:
            at, bound = solve(program, "exchange", at, progress)
            bound, used = min(bound, program.value(at)), "exchange"
    else:
        at, bound = solve(program, method, None, progress)
        used = method
    program.check(at)
    weights = np.take_along_axis(each, expert_of, 1)
    moved = 0 if old is None else int((at != old).sum())
    return ExpertPlacement(
        at, expert_of, weights, float((np.take_along_axis(p, at, 1) * weights).sum()),
        program.value(at), bound, moved, used, perf_counter() - began,
    )  # fmt: skip


def nearest_first(weight: Floats, trips: Floats, layer_cap: Ints) -> Ints:
    """Return each layer's heaviest experts on its nearest servers, shape (layers, experts): optimal
    without caps on totals, by the rearrangement inequality."""
    layers, experts = weight.shape
    at = np.empty((layers, experts), np.int64)
    for layer in range(layers):
        near = np.argsort(trips[layer], kind="stable")
        slots = np.repeat(near, layer_cap[layer, near])
        at[layer, np.argsort(-weight[layer], kind="stable")] = slots[:experts]
    return at


def given_placement(
    weight: ArrayLike, trips: ArrayLike, at: ArrayLike, method: str, expert_of: Ints | None = None
) -> ExpertPlacement:
    """Return a placement made by another rule, with its hops."""
    w, p, servers = check_loads(weight), np.asarray(trips, np.float64), np.asarray(at, np.int64)
    if expert_of is None:
        expert_of = np.tile(np.arange(w.shape[1]), (len(w), 1))
    copies = np.stack([np.bincount(row, minlength=w.shape[1]) for row in expert_of])
    weights = np.take_along_axis(w / copies, expert_of, 1)
    hops = float((np.take_along_axis(p, servers, 1) * weights).sum())
    return ExpertPlacement(servers, expert_of, weights, hops, hops, np.nan, 0, method, 0.0)


def round_robin(layers: int, experts: int, servers: int) -> Ints:
    """Return equal runs of experts on successive servers, as engines place them by default."""
    return np.tile(np.arange(experts) * servers // experts, (layers, 1))


def greedy(weight: ArrayLike, trips: ArrayLike, layer_cap: ArrayLike, total_cap: ArrayLike) -> Ints:
    """Return layer by layer the heaviest experts on the nearest servers that still have room.

    Raises:
        InfeasibleError: it runs out of room, though another placement may exist.
    """
    w, p = check_loads(weight), np.asarray(trips, np.float64)
    caps = np.broadcast_to(np.asarray(layer_cap, np.int64), p.shape)
    left = np.broadcast_to(np.asarray(total_cap, np.int64), p.shape[1:]).copy()
    at = np.empty(w.shape, np.int64)
    for layer in range(len(w)):
        near = np.argsort(p[layer], kind="stable")
        room = np.minimum(caps[layer, near], left[near])
        slots = np.repeat(near, room)[: w.shape[1]]
        if len(slots) < w.shape[1]:
            raise InfeasibleError(
                f"greedy: layer {layer} finds room for {len(slots)} of {w.shape[1]} experts"
            )
        at[layer, np.argsort(-w[layer], kind="stable")] = slots
        left -= np.bincount(slots, minlength=len(left))
    return at
