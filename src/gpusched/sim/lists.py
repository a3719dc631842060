"""The queue and the running list of an engine, linked through the requests themselves."""

from gpusched.compilation import kernel
from gpusched.sim.state import NONE


@kernel
def append_waiting(s, e, r):
    """Put a request at the end of the queue."""
    engine = s.engines[e]
    s.requests[r].next = NONE
    if engine.waiting_tail == NONE:
        engine.waiting_head = r
    else:
        s.requests[engine.waiting_tail].next = r
    engine.waiting_tail = r


@kernel
def prepend_waiting(s, e, r):
    """Put a request at the front of the queue."""
    engine = s.engines[e]
    s.requests[r].next = engine.waiting_head
    engine.waiting_head = r
    if engine.waiting_tail == NONE:
        engine.waiting_tail = r


@kernel
def pop_waiting(s, e):
    """Take the first request out of the queue."""
    engine = s.engines[e]
    engine.waiting_head = s.requests[engine.waiting_head].next
    if engine.waiting_head == NONE:
        engine.waiting_tail = NONE


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
