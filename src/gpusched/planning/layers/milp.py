"""Helix's mixed-integer program of layers and flows (arXiv 2406.01566), tightened.

Every node has a first layer, one of several numbers of layers, and flows on links that a binary
opens where the layers follow one another. Beside the paper's rows: a link carries no more than its
ends can (instead of 5e8), all layers' work is at least L times the flow, and the flow's bound. A
branch-and-bound solver closes little of the gap on more than a few nodes; ``polish`` makes use of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.layers.flow import Network, open_links, solve_flow
from gpusched.solve.milp import Incumbent, Program, Solution
from gpusched.timing.machines import Placement

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

KEPT_LINKS = 12


@dataclass(frozen=True)
class MilpResult:
    """A placement, its flow recomputed on all links, and the solver's account."""

    placement: Placement | None
    tokens_per_s: float
    solution: Solution
    bound: float
    """A flow that no placement of this form exceeds; infinite where links or nodes were left out."""


def prune(network: Network, keep: int = KEPT_LINKS) -> Flags:
    """Return the links to keep: the fastest ``keep`` of each node, either end's choice; of equal
    ones first to nodes of another region's kind spread evenly, so that no name decides."""
    n, links = network.n, network.links
    kept = np.zeros((n + 1, n + 1), np.bool_)
    kept[n], kept[:, n] = links[n] > 0, links[:, n] > 0
    regions = np.unique(np.array(network.machines.regions), return_inverse=True)[1]
    for node in range(n):
        others = np.array([i for i in range(n) if i != node and links[node, i] > 0], np.int64)
        # among equals, turn by turn through the regions and kinds, from the node onwards
        group = regions[others] * len(network.tables) + network.machines.kind_of[others]
        turn = np.zeros(len(others), np.int64)
        for value in np.unique(group):
            rows = np.flatnonzero(group == value)
            rows = rows[np.argsort((others[rows] - node) % n, kind="stable")]
            turn[rows] = np.arange(len(rows))
        order = np.lexsort((turn, -links[node, others]))
        kept[node, others[order[:keep]]] = True
    kept[:n, :n] |= kept[:n, :n].T
    return kept & (links > 0)


def solve_milp(
    network: Network,
    *,
    partial_inference: bool = False,
    full: bool = False,
    start: Placement | None = None,
    free: Flags | None = None,
    links: Flags | None = None,
    bound: float = np.inf,
    time_limit_s: float = 60.0,
    stop: Callable[[Incumbent], bool] | None = None,
    seed: int = 0,
) -> MilpResult:
    """Solve the program. The placement is never worse than ``start``, whatever the limits.

    Args:
        full: whether links must be open, not only may, where layers follow one another. This cuts
            off no placement and helps no flow; Helix leaves it out as redundant.
        start: a placement to start from; its layers and flows are given to the solver whole.
        free: nodes whose layers may differ from ``start``, shape (n,); all if not given.
        links: links to consider beside those of ``start``; all if not given.
        bound: a flow known not to be exceeded.
        stop: asked now and then whether the solution is good enough; see ``stop_near``.
    """
    n, layers = network.n, network.machines.layers
    most = np.minimum(network.most, layers)
    kept = network.links > 0
    if links is not None:
        kept = kept & links
        if start is not None:
            kept |= open_links(network, start, partial_inference=partial_inference)
    whole = np.array_equal(kept, network.links > 0) and free is None
    if start is not None and free is not None:
        # between nodes that stay, links stay open or closed
        moves = np.append(free, False)
        kept = kept & (moves[:, None] | moves[None, :])
        kept |= open_links(network, start, partial_inference=partial_inference)
    origin, to = np.nonzero(kept)
    fastest = np.array([network.table(i).max(initial=0.0) for i in range(n)] + [np.inf])
    capacity = np.minimum(
        np.minimum(network.links[origin, to], bound), np.minimum(fastest[origin], fastest[to])
    )
    program = Program(maximize=True)
    first = program.variables(n, upper=layers - 1, integer=True)
    node_of = np.repeat(np.arange(n), most)
    k = np.concatenate([np.arange(1, m + 1) for m in most])
    rate = np.concatenate([network.table(i)[: most[i]] for i in range(n)])
    held = program.variables(len(k), upper=1.0, integer=True)
    enters = origin == n
    flow = program.variables(len(origin), cost=enters.astype(float), upper=capacity)
    opens = program.variables(len(origin), upper=1.0, integer=True)
    program.rows(node_of, held, 1.0, lower=1.0, upper=1.0, count=n)
    _rows(program, n, [(np.arange(n), first, 1.0), (node_of, held, k)], upper=layers)
    into, out = to < n, origin < n
    _rows(program, n, [(to[into], flow[into], 1.0), (origin[out], flow[out], -1.0)],
          lower=0.0, upper=0.0)  # fmt: skip
    _rows(program, n, [(to[into], flow[into], 1.0), (node_of, held, -rate)], upper=0.0)
    edges = np.arange(len(origin))
    _rows(program, len(edges), [(edges, flow, 1.0), (edges, opens, -capacity)], upper=0.0)
    # L F <= sum of k T(k), and F <= bound
    work = k * rate
    program.row(np.concatenate((flow[enters], held)),
                np.concatenate((np.full(enters.sum(), float(layers)), -work)), upper=0.0)  # fmt: skip
    if np.isfinite(bound):
        program.row(flow[enters], upper=bound)
    _ends(program, origin, to, n, layers, first, held, node_of, k, opens, full)
    inner = np.flatnonzero(~enters & (to < n))
    between = _Inner(inner, origin[inner], to[inner])
    if partial_inference:
        begins, goes_on = _follow_partly(
            program, between, layers, first, held, node_of, k, opens, full
        )
    else:
        _follow(program, between, layers, first, held, node_of, k, opens)
    known = None
    if start is not None:
        begin, count = _whole(start, layers)
        end = begin + count
        known = np.full(program.size[1], np.nan)
        known[first], known[held] = begin, k == count[node_of]
        known[flow] = solve_flow(network, start, partial_inference=partial_inference).flows[
            origin, to
        ]
        before, after = end[between.origin], begin[between.to]
        follows = after == before
        if partial_inference:
            known[begins] = after <= before
            known[goes_on] = before < end[between.to]
            follows = (after <= before) & (before < end[between.to])
        known[opens[inner]] = follows
        known[opens[enters]] = begin[to[enters]] == 0
        known[opens[to == n]] = end[origin[to == n]] == layers
        if free is not None:
            fixed = np.concatenate((first[~free], held[~free[node_of]]))
            program.rows(np.arange(len(fixed)), fixed, 1.0, lower=known[fixed], upper=known[fixed])
    found = program.solve(
        time_limit_s=time_limit_s, relative_gap=1e-4, start=known, stop=stop, seed=seed
    )
    proved = found.bound if whole else np.inf
    own = 0.0
    if start is not None:
        own = solve_flow(network, start, partial_inference=partial_inference).tokens_per_s
    if not len(found.values):
        return MilpResult(start, own, found, proved)
    count = np.zeros(n, np.int64)
    np.add.at(count, node_of, (k * found.values[held].round()).astype(np.int64))
    placement = Placement(found.values[first].round().astype(np.int64), count)
    reached = solve_flow(network, placement, partial_inference=partial_inference).tokens_per_s
    if start is not None and own >= reached:
        return MilpResult(start, own, found, proved)
    return MilpResult(placement, reached, found, proved)


def stop_near(
    bound: float, *, near: float = 0.95, patience_s: float = 100.0, enough: float = 0.995
) -> Callable[[Incumbent], bool]:
    """Return Helix's rule to stop: at ``enough`` of a bound, or at ``near`` of it once nothing
    better has come for ``patience_s``."""

    def stop(seen: Incumbent) -> bool:
        waited = seen.objective >= near * bound and seen.since_better_s >= patience_s
        return waited or seen.objective >= enough * bound

    return stop


def _whole(placement: Placement, layers: int) -> tuple[Ints, Ints]:
    """First layers and numbers of layers where every node must hold some: unused ones the last."""
    used = placement.count > 0
    return np.where(used, placement.first, layers - 1), np.where(used, placement.count, 1)


@dataclass(frozen=True)
class _Inner:
    """Links between nodes: their numbers and ends."""

    link: Ints
    origin: Ints
    to: Ints


Terms = list[tuple[Ints, Ints, float | Floats | Ints]]


def _rows(
    program: Program,
    count: int,
    terms: Terms,
    *,
    lower: float | Floats = -np.inf,
    upper: float | Floats = np.inf,
) -> None:
    rows = np.concatenate([row for row, _, _ in terms])
    columns = np.concatenate([column for _, column, _ in terms])
    values = np.concatenate([np.broadcast_to(value, row.shape) for row, _, value in terms])
    program.rows(rows, columns, values, lower=lower, upper=upper, count=count)


def _end(of: Ints, first: Ints, held: Ints, node_of: Ints, k: Ints, sign: float) -> Terms:
    """Terms of ``sign x`` the end of node ``of[row]`` in each row."""
    rows, choices = np.nonzero(of[:, None] == node_of[None, :])
    return [
        (np.arange(len(of)), first[of], sign),
        (rows, held[choices], sign * k[choices].astype(np.float64)),
    ]


def _ends(
    program: Program, origin: Ints, to: Ints, n: int, layers: int, first: Ints, held: Ints,
    node_of: Ints, k: Ints, opens: Ints, full: bool,
) -> None:  # fmt: skip
    """Requests enter at layer 0 and leave after the last."""
    enter = np.flatnonzero(origin == n)
    rows = np.arange(len(enter))
    _rows(program, len(enter), [(rows, first[to[enter]], 1.0), (rows, opens[enter], float(layers))],
          upper=float(layers))  # fmt: skip
    leave = np.flatnonzero(to == n)
    rows = np.arange(len(leave))
    _rows(program, len(leave), [(rows, opens[leave], float(layers)),
                                *_end(origin[leave], first, held, node_of, k, -1.0)],
          upper=0.0)  # fmt: skip
    if full:
        rows = np.arange(len(enter))
        _rows(program, len(enter), [(rows, first[to[enter]], 1.0), (rows, opens[enter], 1.0)],
              lower=1.0)  # fmt: skip
        rows = np.arange(len(leave))
        _rows(program, len(leave), [(rows, opens[leave], 1.0 - layers),
                                    *_end(origin[leave], first, held, node_of, k, 1.0)],
              upper=layers - 1.0)  # fmt: skip


def _follow(
    program: Program, links: _Inner, layers: int, first: Ints, held: Ints, node_of: Ints, k: Ints,
    opens: Ints,
) -> None:  # fmt: skip
    """An open link joins an end to the same first layer."""
    rows = np.arange(len(links.link))
    for sign in (1.0, -1.0):
        terms: Terms = [
            (rows, opens[links.link], float(layers)),
            (rows, first[links.to], -sign),
            *_end(links.origin, first, held, node_of, k, sign),
        ]
        _rows(program, len(rows), terms, upper=float(layers))


def _follow_partly(
    program: Program, links: _Inner, layers: int, first: Ints, held: Ints, node_of: Ints, k: Ints,
    opens: Ints, full: bool,
) -> tuple[Ints, Ints]:  # fmt: skip
    """An open link leads to a node that begins no later than the end and goes on; return the
    variables that tell so."""
    rows = np.arange(len(links.link))
    beyond = float(layers + 1)
    begins = program.variables(len(rows), upper=1.0, integer=True)
    goes_on = program.variables(len(rows), upper=1.0, integer=True)
    _rows(program, len(rows), [(rows, first[links.to], 1.0), (rows, begins, beyond),
                               *_end(links.origin, first, held, node_of, k, -1.0)],
          upper=beyond)  # fmt: skip
    _rows(program, len(rows), [(rows, goes_on, -beyond),
                               *_end(links.to, first, held, node_of, k, 1.0),
                               *_end(links.origin, first, held, node_of, k, -1.0)],
          lower=1.0 - beyond)  # fmt: skip
    _rows(program, len(rows), [(rows, opens[links.link], 2.0), (rows, begins, -1.0),
                               (rows, goes_on, -1.0)], upper=0.0)  # fmt: skip
    if full:
        _rows(program, len(rows), [(rows, begins, beyond), (rows, first[links.to], 1.0),
                                   *_end(links.origin, first, held, node_of, k, -1.0)],
              lower=1.0)  # fmt: skip
        _rows(program, len(rows), [(rows, goes_on, beyond),
                                   *_end(links.to, first, held, node_of, k, -1.0),
                                   *_end(links.origin, first, held, node_of, k, 1.0)],
              lower=0.0)  # fmt: skip
        _rows(program, len(rows), [(rows, begins, 1.0), (rows, goes_on, 1.0),
                                   (rows, opens[links.link], -1.0)], upper=1.0)  # fmt: skip
    return begins, goes_on
