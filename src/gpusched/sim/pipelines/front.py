"""The front: requests enter, tokens come back and go out again, finished requests leave."""

import math

from gpusched.compilation import kernel
from gpusched.policies.routing.iwrr import IWRR
from gpusched.sim.gaps import add_gaps
from gpusched.sim.pipelines.lists import release_job, schedule, send, series_bin, take_arrived
from gpusched.sim.pipelines.routes import dispatch
from gpusched.sim.pipelines.state import NONE

INITIAL_SPACING_S = 0.1
"""Between the first requests of a closed loop."""


@kernel
def next_arrival_s(s):
    """When the next request arrives; inf if no more is known of."""
    g = s.g[0]
    if not g.closed_loop:
        return s.requests[g.arrived].arrival_s if g.arrived < len(s.requests) else math.inf
    first = g.arrived - g.due_head
    time_s = math.inf
    if first < g.initial:
        time_s = first * INITIAL_SPACING_S
    if g.due_head < g.due_tail:
        time_s = min(time_s, s.due_s[g.due_head])
    return time_s


@kernel
def front_next_s(s):
    """Time of the front's next event."""
    job = s.nodes[len(s.nodes) - 1].way_head
    arrival_s = next_arrival_s(s)
    return min(arrival_s, s.jobs[job].ready_s) if job >= 0 else arrival_s


@kernel
def bottleneck_usage(s):
    """Largest share, over layers, of the KV cache that is reserved at the nodes with the layer."""
    for layer in range(s.g[0].layers):
        s.layer_free[layer] = 0.0
        s.layer_total[layer] = 0.0
    for node in range(len(s.nodes) - 1):
        p = s.nodes[node]
        if p.up:
            free = (p.kv_capacity - p.kv_reserved) / p.layers
            total = p.kv_capacity / p.layers
            for layer in range(p.end - p.layers, p.end):
                s.layer_free[layer] += free
                s.layer_total[layer] += total
    usage = 0.0
    for layer in range(s.g[0].layers):
        if s.layer_total[layer] > 0.0:
            usage = max(usage, 1.0 - s.layer_free[layer] / s.layer_total[layer])
    return usage


@kernel
def feed(s, now_s, finished):
    """Let the closed loop issue one more request if its rule says so."""
    g = s.g[0]
    if not g.closed_loop or g.issued >= len(s.requests) or g.waiting_head >= 0:
        return
    if g.by_usage:
        if bottleneck_usage(s) > g.feed_high_water:
            return
    elif not finished:
        return
    s.due_s[g.due_tail] = now_s + g.feed_delay_s
    g.due_tail += 1
    g.issued += 1


@kernel
def admit_waiting(s, now_s):
    """Send waiting requests on their way, in order, until one finds no pipeline."""
    g = s.g[0]
    g.starved = 0
    while g.waiting_head >= 0:
        request = g.waiting_head
        r = s.requests[request]
        possible = r.prompt_tokens + r.produced <= g.longest_prompt
        if possible:
            job = g.free_job
            if job < 0:
                g.starved = 1
                return
            if dispatch(s, request, job, now_s):
                if math.isnan(r.dispatched_s):
                    r.dispatched_s = now_s
                g.in_flight += 1
                send(s, job, s.routes[job, 0], now_s)
            elif g.in_flight > 0 and not g.drop:
                return
            else:
                possible = False
        if not possible:
            r.rejected = 1
            if g.closed_loop and not g.drop and g.issued < len(s.requests):
                s.due_s[g.due_tail] = now_s + g.feed_delay_s
                g.due_tail += 1
                g.issued += 1
        g.waiting_head = r.next
        if g.waiting_head < 0:
            g.waiting_tail = NONE


@kernel
def arrive(s, now_s):
    """Append the next request to those that wait."""
    g = s.g[0]
    request = g.arrived
    r = s.requests[request]
    if g.closed_loop:
        r.arrival_s = now_s
        first = g.arrived - g.due_head
        if g.due_head < g.due_tail and (
            first >= g.initial or s.due_s[g.due_head] < first * INITIAL_SPACING_S
        ):
            g.due_head += 1
    g.arrived += 1
    r.next = NONE
    if g.waiting_tail >= 0:
        s.requests[g.waiting_tail].next = request
    else:
        g.waiting_head = request
    g.waiting_tail = request


@kernel
def leave(s, job):
    """Free what a finished job held."""
    j = s.jobs[job]
    for hop in range(j.hops):
        e = s.edges[s.routes[job, hop]]
        node = s.nodes[e.to]
        node.kv_used -= j.context * e.layers
        node.kv_reserved -= j.expected * e.layers
    s.g[0].in_flight -= 1
    release_job(s, job)


@kernel
def collect(s, job, now_s):
    """Count the token that a job brings back, and start its next one if it needs more."""
    g, j = s.g[0], s.jobs[job]
    r = s.requests[j.request]
    j.context += j.tokens
    r.produced += 1
    measured = now_s >= g.warmup_s
    s.tokens[series_bin(s, now_s)] += 1.0
    if j.prompt:
        if r.produced == 1:
            r.first_s = now_s
        r.hops = j.hops
        if measured:
            g.prompt_tokens += j.tokens
    elif measured:
        g.decode_tokens += 1
        add_gaps(s.gap_counts, s.gap_totals, now_s - j.issued_s, 1)
    first = j.prompt
    if r.produced == r.output_tokens:
        r.finish_s = now_s
        leave(s, job)
        feed(s, now_s, True)
        return True
    j.prompt = 0
    j.tokens = 1
    j.hop = 0
    j.issued_s = now_s
    if g.policy == IWRR:
        for hop in range(j.hops):
            edge = s.routes[job, hop]
            s.load[edge] += s.step[edge]
    send(s, job, s.routes[job, 0], now_s)
    if first:
        feed(s, now_s, False)
    return False


@kernel
def front_event(s, now_s):
    """Collect the tokens that have come back, then let requests in."""
    g = s.g[0]
    front = len(s.nodes) - 1
    news = False
    while True:
        job = take_arrived(s, front, now_s)
        if job < 0:
            break
        if s.jobs[job].live:
            news |= collect(s, job, now_s)
        else:
            release_job(s, job)
    while next_arrival_s(s) <= now_s:
        arrive(s, now_s)
        news = True
    if news and g.waiting_head >= 0:
        admit_waiting(s, now_s)
    schedule(s, front, front_next_s(s))
