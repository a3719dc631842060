"""Requests held before any engine has them: lists, and the engine they are sent to in the end."""

from gpusched.compilation import cold_kernel, kernel
from gpusched.sim.entry import add_load, enqueue, fits, reject, remember
from gpusched.sim.state import HELD, NONE


@kernel
def append_held(s, r):
    """Put a request at the end of the held ones."""
    front = s.front[0]
    request = s.requests[r]
    request.state = HELD
    request.next = NONE
    if front.tail == NONE:
        front.head = r
    else:
        s.requests[front.tail].next = r
    front.tail = r
    front.held += 1
    front.held_tokens += request.prompt


@kernel
def append_to_class(s, r):
    """Put a request at the end of its class's held ones."""
    classes = s.classes
    request = s.requests[r]
    i = request.priority
    request.state = HELD
    request.next = NONE
    if classes.tails[i] == NONE:
        classes.heads[i] = r
        classes.arrival_s[i] = request.arrival_s
    else:
        s.requests[classes.tails[i]].next = r
    classes.tails[i] = r
    classes.waiting[i] += 1


@kernel
def pop_of_class(s, i):
    """Take the first held request of a class and return it."""
    classes = s.classes
    r = classes.heads[i]
    following = s.requests[r].next
    classes.heads[i] = following
    classes.waiting[i] -= 1
    if following == NONE:
        classes.tails[i] = NONE
    else:
        classes.arrival_s[i] = s.requests[following].arrival_s
    return r


@cold_kernel
def send(s, rules, e, r, now_s):
    """Give a held request to an engine; return whether it can ever fit there."""
    remember(s, r, e)
    if not fits(s, rules, e, r):
        reject(s, rules, r, now_s)
        return False
    add_load(s, rules, e, r, 1)
    enqueue(s, e, r, now_s)
    return True
