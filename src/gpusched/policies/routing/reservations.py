"""What requests have reserved of the attention caches of servers, and when it comes free.

Reservations of a server are sorted by their end. Beside each stands the sum of all reserved up to
it, so the first instant at which enough is free is found by bisection.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import kernel


class Reservations(NamedTuple):
    """State of n servers. Cache is counted in tokens x blocks.

    A request that waits for cache reserves it from now on and until it ends, so nobody after it can
    take what it waits for, and a server never promises more than it has.
    """

    capacity: NDArray[np.int64]
    """Shape (n,)."""
    until_s: NDArray[np.float64]
    """Ends of reservations, sorted in ``head <= i < tail``; shape (n, room)."""
    reserved: NDArray[np.int64]
    """Sum of what was reserved up to each, shape (n, room)."""
    ended: NDArray[np.int64]
    """Sum of what was reserved and has ended, shape (n,)."""
    head: NDArray[np.int64]
    tail: NDArray[np.int64]


def no_reservations(capacity: NDArray[np.int64], room: int = 256) -> Reservations:
    """Return servers without requests; ``room`` is for so many reservations a server."""
    n = len(capacity)
    return Reservations(
        np.asarray(capacity, np.int64),
        np.zeros((n, room)),
        np.zeros((n, room), np.int64),
        *(np.zeros(n, np.int64) for _ in range(3)),
    )


def with_room(held: Reservations, room: int) -> Reservations:
    """Return the same reservations with space for ``room`` a server."""
    more = room - held.until_s.shape[1]
    return held._replace(
        until_s=np.pad(held.until_s, ((0, 0), (0, more))),
        reserved=np.pad(held.reserved, ((0, 0), (0, more))),
    )


@kernel
def end_until(held, server, now_s):
    """Drop the reservations of a server that have ended."""
    head, tail = held.head[server], held.tail[server]
    while head < tail and held.until_s[server, head] <= now_s:
        held.ended[server] = held.reserved[server, head]
        head += 1
    if head == tail:
        head = 0
        held.tail[server] = 0
    held.head[server] = head


@kernel
def free_cache(held, server):
    """Return what is not reserved; below 0 while requests wait."""
    head, tail = held.head[server], held.tail[server]
    if head == tail:
        return held.capacity[server]
    return held.capacity[server] - held.reserved[server, tail - 1] + held.ended[server]


@kernel
def wait_for_cache(held, server, need, now_s):
    """Return the seconds until ``need`` is free; inf if the server is too small."""
    if need > held.capacity[server]:
        return np.inf
    short = need - free_cache(held, server)
    if short <= 0:
        return 0.0
    target = held.ended[server] + short
    low, high = held.head[server], held.tail[server] - 1
    while low < high:
        middle = (low + high) // 2
        if held.reserved[server, middle] >= target:
            high = middle
        else:
            low = middle + 1
    return held.until_s[server, low] - now_s


@kernel
def has_room(held, server):
    """Make space for one more reservation if there can be; tell whether there is."""
    head, tail = held.head[server], held.tail[server]
    room = held.until_s.shape[1]
    if tail < room:
        return True
    if head == 0:
        return False
    for at in range(head, tail):
        held.until_s[server, at - head] = held.until_s[server, at]
        held.reserved[server, at - head] = held.reserved[server, at]
    held.head[server], held.tail[server] = 0, tail - head
    return True


@kernel
def reserve(held, server, need, until_s):
    """Reserve ``need`` until a time; ``has_room`` must have told so."""
    head, tail = held.head[server], held.tail[server]
    if head == tail:
        held.ended[server] = 0
    at = tail
    while at > head and held.until_s[server, at - 1] > until_s:
        held.until_s[server, at] = held.until_s[server, at - 1]
        held.reserved[server, at] = held.reserved[server, at - 1] + need
        at -= 1
    held.until_s[server, at] = until_s
    before = held.reserved[server, at - 1] if at > head else held.ended[server]
    held.reserved[server, at] = before + need
    held.tail[server] = tail + 1


@kernel
def give_back(held, server, need, until_s):
    """End one reservation of ``need`` that lasts until a time, now; tell whether there was one."""
    head, tail = held.head[server], held.tail[server]
    for at in range(head, tail):
        before = held.reserved[server, at - 1] if at > head else held.ended[server]
        if held.until_s[server, at] == until_s and held.reserved[server, at] - before == need:
            for later in range(at + 1, tail):
                held.until_s[server, later - 1] = held.until_s[server, later]
                held.reserved[server, later - 1] = held.reserved[server, later] - need
            held.tail[server] = tail - 1
            return True
    return False
