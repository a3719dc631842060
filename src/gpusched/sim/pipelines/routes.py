"""Choosing pipelines inside the kernel: the router's functions over the simulator's arrays."""

from gpusched.compilation import kernel
from gpusched.policies.routing.iwrr import (
    IWRR,
    RANDOM,
    SWARM,
    any_open,
    expected_tokens,
    kv_fits,
    least_load,
    least_priority,
    shortest,
)
from gpusched.sim.pipelines.lists import drain
from gpusched.sim.pipelines.state import NONE


@kernel
def open_edges(s, place, prompt_tokens, expected, mask_kv):
    """Open the edges of a place that a prompt may take."""
    front = len(s.nodes) - 1
    for edge in range(s.edges_at[place], s.edges_at[place + 1]):
        to = s.edges[edge].to
        node = s.nodes[to]
        s.open_[edge] = s.usable[edge] and (
            to == front
            or (
                prompt_tokens <= node.prompt_tokens
                and (
                    not mask_kv
                    or kv_fits(
                        node.kv_reserved, node.kv_capacity, expected, node.layers,
                        s.g[0].kv_high_water,
                    )
                )
            )
        )  # fmt: skip


@kernel
def choose_edge(s, place, prompt_tokens, expected, mask_kv, now_s):
    """The edge that a prompt takes from a place, the router's state updated; -1 if none is open."""
    g = s.g[0]
    low, high = s.edges_at[place], s.edges_at[place + 1]
    open_edges(s, place, prompt_tokens, expected, mask_kv)
    if g.policy == IWRR:
        edge = least_load(s.weight, s.load, s.open_, prompt_tokens, low, high)
        if edge >= 0:
            s.load[edge] += prompt_tokens / s.weight[edge]
        return edge
    if g.policy == SWARM:
        edge = least_priority(s.priority, s.open_, low, high)
        if edge >= 0:
            s.priority[edge] += s.mean_s[edge]
        return edge
    if g.policy == RANDOM:
        edge = any_open(s.open_, low, high, g.seed, g.turn)
    else:
        for edge in range(low, high):
            s.length[edge] = 0.0
            to = s.edges[edge].to
            if s.usable[edge] and to != len(s.nodes) - 1:
                drain(s, to, now_s)
                s.length[edge] = s.queues[s.nodes[to].queue].length
        edge = shortest(s.length, s.open_, low, high, g.seed, g.turn)
    if edge >= 0:
        g.turn += 1
    return edge


@kernel
def reserve(s, edge, expected):
    """Count a request's expected KV cache at the node that an edge leads to."""
    e = s.edges[edge]
    node = s.nodes[e.to]
    node.kv_reserved += expected * e.layers
    node.kv_reserved_peak = max(node.kv_reserved_peak, node.kv_reserved)


@kernel
def whole_route(s, job, prompt_tokens, expected, now_s):
    """Write a pipeline from front to front into the job's route and return its edges; on a dead end
    undo the loads and return 0."""
    front = len(s.nodes) - 1
    place, hops = front, 0
    while True:
        low, high = s.edges_at[place], s.edges_at[place + 1]
        open_edges(s, place, prompt_tokens, expected, s.g[0].mask_kv)
        edge = least_load(s.weight, s.load, s.open_, prompt_tokens, low, high)
        if edge < 0:
            while hops > 0:
                hops -= 1
                s.load[s.routes[job, hops]] = s.old_load[hops]
            return 0
        s.old_load[hops] = s.load[edge]
        s.load[edge] += prompt_tokens / s.weight[edge]
        s.routes[job, hops] = edge
        hops += 1
        place = s.edges[edge].to
        if place == front:
            return hops


@kernel
def dispatch(s, request, job, now_s):
    """Give a request its pipeline, or under other policies than IWRR its first node, in a free
    job. Returns whether there is one."""
    g, r, j = s.g[0], s.requests[request], s.jobs[job]
    tokens = r.prompt_tokens + r.produced
    expected = int(expected_tokens(tokens, g.output_share, g.mean_output_tokens))
    if g.whole_route:
        hops = whole_route(s, job, tokens, expected, now_s)
        if hops == 0:
            return False
    else:
        front = len(s.nodes) - 1
        edge = choose_edge(s, front, tokens, expected, g.mask_kv, now_s)
        if edge == NONE:
            return False
        s.routes[job, 0] = edge
        hops = 1
    for hop in range(hops):
        reserve(s, s.routes[job, hop], expected)
    g.free_job = j.next
    j.request = request
    j.live = 1
    j.prompt = 1
    j.tokens = tokens
    j.context = 0
    j.expected = expected
    j.hop = 0
    j.hops = hops
    j.issued_s = now_s
    return True
