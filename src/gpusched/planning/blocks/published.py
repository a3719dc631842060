"""The paper's own mixed-integer program (B-1 to B-20 of our notes, arXiv 2512.21884): the oracle of the
other methods on instances of a few servers and requests."""

import numpy as np

from gpusched.errors import InfeasibleError
from gpusched.planning.blocks.offline import Offline, place_and_route
from gpusched.solve.milp import Program, Solution
from gpusched.timing.chains import BlockServers, Ints, Placed


def place_as_published(
    servers: BlockServers, clients: Ints, tokens: int, *, time_limit_s: float = 60.0
) -> Offline:
    """Return placement and chains of least total time a token; after ``time_limit_s`` the best found,
    with its bound. Every server holds at least one block, as in the paper.

    For request r and edge (i, j), ``flow`` says whether it is used, and ``alpha, beta, gamma, delta``
    are the products of ``flow`` with the first blocks of j and i and the sizes of j and i, so
    ``alpha - beta + gamma - delta`` blocks run at j. Blocks count from 1; the client holds block 0
    before and L + 1 after the servers, one block each.

    Raises:
        InfeasibleError: proven to have no solution.
    """
    n, total = servers.count, servers.blocks
    leave, back = n, n + 1
    edges = [(leave, j) for j in range(n)] + [(i, back) for i in range(n)]
    edges += [(i, j) for i in range(n) for j in range(n) if i != j]
    tail, head = np.array(edges).T
    to_server, from_server = head < n, tail < n
    program = Program()
    first = program.variables(n, lower=1, upper=total, integer=True)
    size = program.variables(n, lower=1, upper=total, integer=True)
    program.rows(np.arange(n)[:, None], np.stack([first, size], 1), 1.0, upper=total + 1)
    memory_row, memory_of, memory_bytes = [np.arange(n)], [size], [np.full(n, servers.block_bytes)]
    cache = servers.cache_bytes(tokens)
    flows = []
    for client in clients:
        at = np.where(to_server, head, 0)
        trip = np.where(to_server, servers.decode_trip_s[client][at], 0.0)
        block = np.where(to_server, servers.decode_block_s[at], 0.0)
        usable = np.isfinite(trip)
        flow = program.variables(
            len(edges), cost=np.where(usable, trip, 0.0), upper=usable.astype(float), integer=True
        )
        alpha, beta, gamma, delta = (
            program.variables(len(edges), cost=sign * block) for sign in (1, -1, 1, -1)
        )
        flows.append(flow)
        balance = np.zeros(n + 2)
        balance[leave], balance[back] = 1, -1
        program.rows(
            np.concatenate([tail, head]), np.concatenate([flow, flow]),
            np.concatenate([np.ones(len(edges)), -np.ones(len(edges))]),
            lower=balance, upper=balance, count=n + 2,
        )  # fmt: skip
        inner = np.flatnonzero(to_server)
        for of, sign in ((alpha, 1.0), (beta, -1.0), (gamma, 1.0), (delta, -1.0)):
            memory_row.append(head[inner])
            memory_of.append(of[inner])
            memory_bytes.append(np.full(len(inner), sign * cache))
        for of, variable, far, constant, most in (
            (alpha, first, head, {back: total + 1}, total + 1),
            (beta, first, tail, {leave: 0}, total),
            (gamma, size, head, {back: 1}, total),
            (delta, size, tail, {leave: 1}, total),
        ):
            _product(program, of, flow, variable, far, constant, most)
        # j's first block comes no later than i's end (B-5)
        _at_most_end(program, alpha, None, tail, from_server, first, size, 0.0, 1.0)
        # i's end comes before j's (B-6)
        _at_most_end(program, beta, delta, head, to_server, first, size, -1.0, total + 1.0)
    program.rows(
        np.concatenate(memory_row), np.concatenate(memory_of), np.concatenate(memory_bytes),
        upper=servers.memory_bytes, count=n,
    )  # fmt: skip
    found = program.solve(time_limit_s=time_limit_s, relative_gap=1e-9)
    return _offline(servers, clients, tokens, found, first, size, flows, (tail, head))


def _product(
    program: Program, of: Ints, flow: Ints, variable: Ints, at: Ints, constant: dict[int, int], most: int
) -> None:  # fmt: skip
    """``of`` = ``flow`` x the variable of the server ``at``, or the client's constant."""
    known = np.isin(at, list(constant))
    value = np.array([constant.get(int(i), 0) for i in at], np.float64)
    k, m = np.flatnonzero(known), np.flatnonzero(~known)
    row = np.arange(len(k))[:, None]
    program.rows(
        row, np.stack([of[k], flow[k]], 1), np.stack([np.ones(len(k)), -value[k]], 1), lower=0, upper=0
    )  # fmt: skip
    row, ones = np.arange(len(m))[:, None], np.ones(len(m))
    pair = np.stack([of[m], flow[m]], 1)
    program.rows(row, pair, np.stack([ones, -most * ones], 1), upper=0)
    program.rows(row, np.stack([of[m], variable[at[m]]], 1), np.array([1.0, -1.0]), upper=0)
    program.rows(
        row, np.stack([of[m], variable[at[m]], flow[m]], 1), np.array([1.0, -1.0, -most]), lower=-most
    )  # fmt: skip


def _at_most_end(
    program: Program, one: Ints, other: Ints | None, at: Ints, is_server: np.ndarray,
    first: Ints, size: Ints, shift: float, client_end: float,
) -> None:  # fmt: skip
    """``one + other <= first + size + shift`` of the server ``at``; the client's end is a constant."""
    terms = [one] if other is None else [one, other]
    for rows, ends in ((np.flatnonzero(is_server), True), (np.flatnonzero(~is_server), False)):
        columns = [t[rows] for t in terms]
        signs = [1.0] * len(terms)
        if ends:
            columns += [first[at[rows]], size[at[rows]]]
            signs += [-1.0, -1.0]
        program.rows(
            np.arange(len(rows))[:, None], np.stack(columns, 1), np.array(signs),
            upper=shift if ends else client_end,
        )  # fmt: skip


def _offline(
    servers: BlockServers, clients: Ints, tokens: int, found: Solution,
    first: Ints, size: Ints, flows: list[Ints], edges: tuple[Ints, Ints],
) -> Offline:  # fmt: skip
    if found.status == "infeasible":
        raise InfeasibleError(
            f"memory: {len(clients)} requests of {tokens} tokens cannot be served at once"
        )
    if not len(found.values):
        greedy = place_and_route(servers, clients, tokens)
        return Offline(
            greedy.placed, greedy.chains, greedy.token_s, found.bound, found.seconds, found.status
        )
    starts, blocks = (np.round(found.values[of]).astype(np.int64) for of in (first, size))
    placed = Placed(starts - 1, blocks, servers.cache_room(blocks))
    tail, head = edges
    chains, token_s = [], 0.0
    for client, flow in zip(clients, flows, strict=True):
        used = np.flatnonzero(found.values[flow] > 0.5)
        following = {int(tail[e]): int(head[e]) for e in used}
        chain, at, boundary = [], following[servers.count], 0
        while at < servers.count:
            end = int(placed.end[at])
            chain.append((at, end - boundary))
            token_s += servers.decode_trip_s[client, at]
            token_s += servers.decode_block_s[at] * (end - boundary)
            at, boundary = following[at], end
        chains.append(chain)
    return Offline(
        placed,
        tuple(chains),
        float(token_s),
        min(found.bound, float(token_s)),
        found.seconds,
        found.status,
    )
