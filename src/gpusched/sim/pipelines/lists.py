"""Lists of jobs: on their way to a place, waiting in a queue, in a batch; and the next event."""

import math

from gpusched.compilation import kernel
from gpusched.sim.pipelines.state import NONE, SERIES_BINS


@kernel
def schedule(s, place, time_s):
    """Set the time of a place's next event. Equal times go to the lower place."""
    s.next_s[place] = time_s
    half = len(s.next_s)
    i = (place + half) >> 1
    while i >= 1:
        left, right = s.winner[2 * i], s.winner[2 * i + 1]
        s.winner[i] = left if s.next_s[left] <= s.next_s[right] else right
        i >>= 1


@kernel
def release_job(s, job):
    """Make a job free for another request."""
    s.jobs[job].live = 0
    s.jobs[job].next = s.g[0].free_job
    s.g[0].free_job = job


@kernel
def send(s, job, edge, now_s):
    """Put a job on a link behind what the link still has to send."""
    j, e = s.jobs[job], s.edges[edge]
    start_s = max(now_s, e.free_s)
    free_s = start_s + j.tokens * e.s_per_token
    e.free_s = free_s
    j.sent_s = start_s
    ready_s = free_s + e.latency_s
    j.ready_s = ready_s
    to = s.nodes[e.to]
    after = to.way_tail
    while after >= 0 and s.jobs[after].ready_s > ready_s:
        after = s.jobs[after].previous
    j.previous = after
    if after >= 0:
        follower = s.jobs[after].next
        s.jobs[after].next = job
    else:
        follower = to.way_head
        to.way_head = job
    j.next = follower
    if follower >= 0:
        s.jobs[follower].previous = job
    else:
        to.way_tail = job
    if ready_s < s.next_s[e.to] and to.finish_s == math.inf:
        schedule(s, e.to, ready_s)


@kernel
def take_arrived(s, place, now_s):
    """Remove and return the first job that has reached a place; -1 if none has."""
    p = s.nodes[place]
    job = p.way_head
    if job < 0 or s.jobs[job].ready_s > now_s:
        return NONE
    follower = s.jobs[job].next
    p.way_head = follower
    if follower >= 0:
        s.jobs[follower].previous = NONE
    else:
        p.way_tail = NONE
    return job


@kernel
def append(s, node, queue, job):
    """Put a job at the end of one of a node's queues."""
    p, q, j = s.nodes[node], s.queues[queue], s.jobs[job]
    j.order = p.order
    p.order += 1
    j.next = NONE
    q.length += 1
    if j.prompt:
        if q.prompt_tail >= 0:
            s.jobs[q.prompt_tail].next = job
        else:
            q.prompt_head = job
        q.prompt_tail = job
    else:
        if q.decode_tail >= 0:
            s.jobs[q.decode_tail].next = job
        else:
            q.decode_head = job
        q.decode_tail = job


@kernel
def drain(s, node, now_s):
    """Queue the jobs that have reached a node."""
    p = s.nodes[node]
    while True:
        job = take_arrived(s, node, now_s)
        if job < 0:
            return
        j = s.jobs[job]
        if j.live:
            p.copied_tokens += j.tokens
            append(s, node, s.edges[s.routes[job, j.hop]].queue, job)
        else:
            release_job(s, job)


@kernel
def first_prompt(s, q):
    """The first live prompt of a queue, dead ones before it dropped; -1 if there is none."""
    while q.prompt_head >= 0 and not s.jobs[q.prompt_head].live:
        pop_prompt(s, q, True)
    return q.prompt_head


@kernel
def first_decode(s, q):
    """The first live decode of a queue, dead ones before it dropped; -1 if there is none."""
    while q.decode_head >= 0 and not s.jobs[q.decode_head].live:
        pop_decode(s, q, True)
    return q.decode_head


@kernel
def pop_prompt(s, q, dead):
    """Take the first prompt out of a queue, and free its job if it is dead."""
    job = q.prompt_head
    q.prompt_head = s.jobs[job].next
    if q.prompt_head < 0:
        q.prompt_tail = NONE
    q.length -= 1
    if dead:
        release_job(s, job)


@kernel
def pop_decode(s, q, dead):
    """Take the first decode out of a queue, and free its job if it is dead."""
    job = q.decode_head
    q.decode_head = s.jobs[job].next
    if q.decode_head < 0:
        q.decode_tail = NONE
    q.length -= 1
    if dead:
        release_job(s, job)


@kernel
def series_bin(s, time_s):
    """Bin of a time, the bins made wider as needed."""
    g = s.g[0]
    while time_s >= g.bin_s * SERIES_BINS:
        for i in range(SERIES_BINS // 2):
            s.tokens[i] = s.tokens[2 * i] + s.tokens[2 * i + 1]
            for node in range(len(s.busy)):
                s.busy[node, i] = s.busy[node, 2 * i] + s.busy[node, 2 * i + 1]
                s.kv[node, i] = max(s.kv[node, 2 * i], s.kv[node, 2 * i + 1])
        for i in range(SERIES_BINS // 2, SERIES_BINS):
            s.tokens[i] = 0.0
            for node in range(len(s.busy)):
                s.busy[node, i] = 0.0
                s.kv[node, i] = 0.0
        g.bin_s *= 2.0
    return int(time_s / g.bin_s)
