"""The queue and the running list of an engine, linked through the requests themselves.

A queue is a list in order of arrival, a pairing heap in order of rank (Fredman et al., Algorithmica
1, 1986), or one list a group. A request in a heap has its children in ``link`` and its siblings in
``next``; one in a group's list has its follower in ``link``.
"""

import numpy as np

from gpusched.compilation import kernel
from gpusched.policies.batching.discipline import GROUPED
from gpusched.policies.batching.order import FCFS
from gpusched.sim.state import NONE


@kernel
def join_queue(s, e, r, front):
    """Queue a request whose rank and group are set; ``front`` puts it before all of its list."""
    engine = s.engines[e]
    request = s.requests[r]
    engine.waiting += 1
    if engine.gate == GROUPED:
        join_group(s, e, 0 if engine.nested else np.int64(request.group), r, front)
    elif engine.order != FCFS:
        request.next = NONE
        request.link = NONE
        engine.waiting_head = meld(s, engine.waiting_head, r)
    elif front:
        request.next = engine.waiting_head
        engine.waiting_head = r
        if engine.waiting_tail == NONE:
            engine.waiting_tail = r
    else:
        request.next = NONE
        if engine.waiting_tail == NONE:
            engine.waiting_head = r
        else:
            s.requests[engine.waiting_tail].next = r
        engine.waiting_tail = r


@kernel
def pop_waiting(s, e):
    """Take the first request out of a queue that is a list or a heap."""
    engine = s.engines[e]
    engine.waiting -= 1
    first = s.requests[engine.waiting_head]
    if engine.order == FCFS:
        engine.waiting_head = first.next
        if engine.waiting_head == NONE:
            engine.waiting_tail = NONE
    else:
        engine.waiting_head = meld_children(s, first.link)


@kernel
def meld(s, a, b):
    """Join two heaps and return the root: lower rank first, then lower index."""
    if a == NONE:
        return b
    if b == NONE:
        return a
    first, second = s.requests[a], s.requests[b]
    if second.rank < first.rank or (second.rank == first.rank and b < a):
        first.next = second.link
        second.link = a
        return b
    second.next = first.link
    first.link = b
    return a


@kernel
def meld_children(s, child):
    """Join sibling heaps: in pairs from the left, then one by one from the right."""
    stack = NONE
    while child != NONE:
        pair = s.requests[child].next
        s.requests[child].next = NONE
        rest = NONE
        if pair != NONE:
            rest = s.requests[pair].next
            s.requests[pair].next = NONE
            child = meld(s, child, pair)
        s.requests[child].next = stack
        stack = child
        child = rest
    root = NONE
    while stack != NONE:
        rest = s.requests[stack].next
        s.requests[stack].next = NONE
        root = meld(s, root, stack)
        stack = rest
    return root


@kernel
def join_group(s, e, g, r, front):
    """Put a request into a group's list."""
    request = s.requests[r]
    if front:
        request.link = s.group_heads[e, g]
        s.group_heads[e, g] = r
        if s.group_tails[e, g] == NONE:
            s.group_tails[e, g] = r
    else:
        request.link = NONE
        if s.group_tails[e, g] == NONE:
            s.group_heads[e, g] = r
        else:
            s.requests[s.group_tails[e, g]].link = r
        s.group_tails[e, g] = r
    s.group_counts[e, g] += 1


@kernel
def pop_group(s, e, g):
    """Take the first request out of a group's list and return it."""
    r = s.group_heads[e, g]
    s.group_heads[e, g] = s.requests[r].link
    if s.group_heads[e, g] == NONE:
        s.group_tails[e, g] = NONE
    s.group_counts[e, g] -= 1
    return r


@kernel
def leave_group(s, e, g, r):
    """Take a request out of a group's list wherever it is."""
    previous = NONE
    other = s.group_heads[e, g]
    while other != r:
        previous = other
        other = s.requests[other].link
    following = s.requests[r].link
    if previous == NONE:
        s.group_heads[e, g] = following
    else:
        s.requests[previous].link = following
    if following == NONE:
        s.group_tails[e, g] = previous
    s.group_counts[e, g] -= 1


@kernel
def append_running(s, e, r):
    """Put a request at the end of the running list."""
    engine = s.engines[e]
    request = s.requests[r]
    request.next = NONE
    request.previous = engine.running_tail
    if engine.running_tail == NONE:
        engine.running_head = r
    else:
        s.requests[engine.running_tail].next = r
    engine.running_tail = r
    engine.running += 1


@kernel
def unlink_running(s, e, r):
    """Take a request out of the running list."""
    engine = s.engines[e]
    request = s.requests[r]
    if request.previous == NONE:
        engine.running_head = request.next
    else:
        s.requests[request.previous].next = request.next
    if request.next == NONE:
        engine.running_tail = request.previous
    else:
        s.requests[request.next].previous = request.previous
    engine.running -= 1
