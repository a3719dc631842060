"""A node: forms a batch, runs a segment of its layers, passes the batch on.

A batch takes what has arrived, in order, up to the node's caps; prompts and decodes share it and
their times add up. Batches do not overlap on a node.
"""

import math

from gpusched.compilation import kernel
from gpusched.policies.routing.iwrr import SWARM, smoothed
from gpusched.sim.pipelines.lists import (
    append,
    drain,
    first_decode,
    first_prompt,
    pop_decode,
    pop_prompt,
    release_job,
    schedule,
    send,
    series_bin,
)
from gpusched.sim.pipelines.routes import choose_edge, reserve
from gpusched.sim.pipelines.state import NONE


@kernel
def form_batch(s, node, segment, now_s):
    """Move a batch from a queue to the node and return its prompt tokens and decodes."""
    p = s.nodes[node]
    queue = p.queue + segment
    q = s.queues[queue]
    prompts, prompt_tokens, decodes, context = 0, 0, 0, 0
    p.batch_head = NONE
    p.batch_tail = NONE
    while True:
        prompt, decode = NONE, NONE
        if prompts < p.prompt_requests:
            prompt = first_prompt(s, q)
            if (
                prompt >= 0
                and prompts > 0
                and prompt_tokens + s.jobs[prompt].tokens > p.prompt_tokens
            ):
                prompt = NONE
        if decodes < p.decode_requests:
            decode = first_decode(s, q)
            if decode >= 0 and decodes > 0 and context + s.jobs[decode].context > p.decode_context:
                decode = NONE
        if prompt < 0 and decode < 0:
            break
        if decode < 0 or (prompt >= 0 and s.jobs[prompt].order < s.jobs[decode].order):
            job = prompt
            pop_prompt(s, q, False)
            prompts += 1
            prompt_tokens += s.jobs[job].tokens
        else:
            job = decode
            pop_decode(s, q, False)
            decodes += 1
            context += s.jobs[job].context
        j = s.jobs[job]
        e = s.edges[s.routes[job, j.hop]]
        if e.queue == queue:
            p.kv_used += j.tokens * e.layers
            p.wait_s += now_s - j.ready_s
            p.waits += 1
        j.next = NONE
        if p.batch_tail >= 0:
            s.jobs[p.batch_tail].next = job
        else:
            p.batch_head = job
        p.batch_tail = job
    p.batched += prompts + decodes
    return prompt_tokens, decodes


@kernel
def take_arrivals(s, node, now_s):
    """Make all jobs that have reached a node its batch, by cutting their list, if one batch may
    take them. Returns prompt tokens and decodes, or -1 twice if it may not.

    For nodes that jobs enter at the first layer only, with nothing queued.
    """
    p = s.nodes[node]
    prompts, prompt_tokens, decodes, context = 0, 0, 0, 0
    wait_s = 0.0
    last, job = NONE, p.way_head
    while job >= 0:
        j = s.jobs[job]
        if j.ready_s > now_s:
            break
        if not j.live:
            return -1, -1
        if j.prompt:
            prompts += 1
            prompt_tokens += j.tokens
        else:
            decodes += 1
            context += j.context
        wait_s += now_s - j.ready_s
        last = job
        job = j.next
    if (
        prompts > p.prompt_requests
        or decodes > p.decode_requests
        or (prompts > 1 and prompt_tokens > p.prompt_tokens)
        or (decodes > 1 and context > p.decode_context)
    ):
        return -1, -1
    if last >= 0:
        p.batch_head = p.way_head
        p.batch_tail = last
        s.jobs[last].next = NONE
        p.way_head = job
        if job >= 0:
            s.jobs[job].previous = NONE
        else:
            p.way_tail = NONE
        tokens = prompt_tokens + decodes
        p.copied_tokens += tokens
        p.kv_used += tokens * p.layers
        p.wait_s += wait_s
        p.waits += prompts + decodes
        p.batched += prompts + decodes
    return prompt_tokens, decodes


@kernel
def start_segment(s, node, segment, prompt_tokens, decodes, now_s):
    """Start a segment with the node's batch."""
    p = s.nodes[node]
    layers = s.queues[p.queue + segment].layers
    prompt_s = layers * s.prompt_s[p.kind, prompt_tokens]
    duration_s = prompt_s + layers * s.decode_s[p.kind, decodes]
    if segment == 0:
        duration_s += p.copied_tokens * s.g[0].copy_s_per_token
        p.copied_tokens = 0
    p.segment = segment
    p.finish_s = now_s + duration_s
    p.iterations += 1
    p.layer_iterations += layers
    p.busy_s += duration_s
    p.prompt_busy_s += prompt_s
    p.kv_peak = max(p.kv_peak, p.kv_used)
    index = series_bin(s, now_s)
    s.busy[node, index] += duration_s
    s.kv[node, index] = max(s.kv[node, index], p.kv_used)
    schedule(s, node, p.finish_s)


@kernel
def start_next(s, node, now_s):
    """Start the next segment, in cyclic order, that has jobs; if none has, wait for arrivals."""
    p = s.nodes[node]
    cut = False
    if p.segments == 1 and s.queues[p.queue].length == 0:
        prompt_tokens, decodes = take_arrivals(s, node, now_s)
        cut = prompt_tokens >= 0
        if cut and p.batch_head >= 0:
            start_segment(s, node, 0, prompt_tokens, decodes, now_s)
            return
    if not cut:
        drain(s, node, now_s)
        for step in range(1, p.segments + 1):
            segment = p.segment + step
            if segment >= p.segments:
                segment -= p.segments
            if s.queues[p.queue + segment].length > 0:
                prompt_tokens, decodes = form_batch(s, node, segment, now_s)
                if p.batch_head >= 0:
                    start_segment(s, node, segment, prompt_tokens, decodes, now_s)
                    return
    p.finish_s = math.inf
    schedule(s, node, s.jobs[p.way_head].ready_s if p.way_head >= 0 else math.inf)


@kernel
def pass_on(s, node, job, now_s):
    """Send a job to the next place of its pipeline, chosen now if it is a prompt without one."""
    j = s.jobs[job]
    if s.g[0].policy == SWARM:
        came_by = s.routes[job, j.hop]
        s.mean_s[came_by] = smoothed(s.mean_s[came_by], now_s - j.sent_s, s.g[0].smoothing)
    j.hop += 1
    if j.hop == j.hops:
        edge = choose_edge(s, node, j.tokens, j.expected, s.g[0].mask_kv, now_s)
        if edge < 0:
            edge = choose_edge(s, node, 0, 0, False, now_s)
        s.routes[job, j.hop] = edge
        j.hops += 1
        reserve(s, edge, j.expected)
    send(s, job, s.routes[job, j.hop], now_s)


@kernel
def node_event(s, node, now_s):
    """End the segment that runs, if any, and start the next one."""
    p = s.nodes[node]
    last = p.segment + 1 == p.segments
    if not last:
        drain(s, node, now_s)
    job = p.batch_head
    p.batch_head = NONE
    p.batch_tail = NONE
    p.finish_s = math.inf
    while job >= 0:
        follower = s.jobs[job].next
        if not s.jobs[job].live:
            release_job(s, job)
        elif last:
            pass_on(s, node, job, now_s)
        else:
            append(s, node, p.queue + p.segment + 1, job)
        job = follower
    start_next(s, node, now_s)
