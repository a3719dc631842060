"""Decode routers: where a request whose prefill is done goes on, in a cluster of two pools.

*Solo* GPUs run no prefill, *mixed* ones may. A free list holds the GPUs of a pool with room for a
decode; among them any is as good as another. Source: arXiv 2602.02987, Section 4.
"""

import numpy as np

from gpusched.compilation import kernel

DECODE_FIRST, PREFILL_FIRST, STAY, SPLIT = range(4)
"""Solo first, else mixed; mixed first, else solo; the GPU of the prefill; the pool drawn."""

ROUTERS = {
    "decode-first": DECODE_FIRST,
    "prefill-first": PREFILL_FIRST,
    "stay": STAY,
    "split": SPLIT,
}

SOLO, MIXED = range(2)
"""Pools."""
NONE = -1


@kernel
def choose_pool(router, solo_free, mixed_free):
    """The pool that a router without a split takes, by how many GPUs have room; -1 if none has."""
    first, second = (SOLO, MIXED) if router == DECODE_FIRST else (MIXED, SOLO)
    first_free = solo_free if first == SOLO else mixed_free
    second_free = mixed_free if first == SOLO else solo_free
    if first_free > 0:
        return first
    if second_free > 0:
        return second
    return NONE


@kernel
def split_pool(to_solo, uniform):
    """The pool of a router that splits a class at random: solo with probability ``to_solo``."""
    return SOLO if uniform < to_solo else MIXED


@kernel
def choose_free(members, size, uniform):
    """One of ``members[:size]``, for a draw from 0 to below 1; -1 if there is none."""
    return members[np.int64(uniform * size)] if size > 0 else NONE


@kernel
def route_decode(router, origin, to_solo, solo, solo_free, mixed, mixed_free, draw, uniform):
    """Return the GPU that takes a finished prompt, or -1 if it must wait.

    ``solo[:solo_free]`` and ``mixed[:mixed_free]`` are the free lists, ``origin`` the GPU of the
    prefill, ``to_solo`` the class's probability of the solo pool; ``draw`` decides on the pool,
    ``uniform`` on the GPU in it. Under a split the request waits for its pool, ``split_pool`` of
    the same draw.
    """
    if router == STAY:
        return origin
    if router == SPLIT:
        pool = split_pool(to_solo, draw)
    else:
        pool = choose_pool(router, solo_free, mixed_free)
    if pool == NONE:
        return NONE
    if pool == SOLO:
        return choose_free(solo, solo_free, uniform)
    return choose_free(mixed, mixed_free, uniform)


@kernel
def weighted_class(waiting, weights, n_classes, uniform):
    """A waiting class drawn in proportion to ``weights``, or -1 if none waits.

    For a freed slot under a split whose plan keeps a decode queue; without weights among those
    that wait, the first of them.
    """
    total = 0.0
    found = NONE
    for i in range(n_classes):
        if waiting[i] > 0:
            total += weights[i]
            if found == NONE:
                found = i
    left = uniform * total
    for i in range(n_classes):
        if waiting[i] > 0 and weights[i] > 0.0:
            if left < weights[i]:
                return i
            left -= weights[i]
            found = i
    return found
