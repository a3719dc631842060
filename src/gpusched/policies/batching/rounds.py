"""Look-ahead admission in unit rounds: the setting in which MC-SF's theory is stated.

One worker, one round a batch: a request started in round ``p`` holds ``s + k`` tokens in round
``p + k`` for ``k = 1 .. o`` and is never interrupted (arXiv 2502.07115, Section 2). The same check
admits requests in the simulator and in an engine; here it runs on plain arrays.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.policies.batching.lookahead import insert, shortfall

Ints = NDArray[np.int64]
Order = Literal["output", "output-then-index", "volume", "peak", "arrival"]


def checked(
    arrival: ArrayLike, prompt: ArrayLike, output: ArrayLike, kv_tokens: int
) -> tuple[Ints, Ints, Ints]:
    """Return the three columns as integers.

    Raises:
        InputError: lengths differ or are not positive, an arrival is negative, or a request never
            fits.
    """
    a, s, o = (np.asarray(column, np.int64).ravel() for column in (arrival, prompt, output))
    if not len(a) == len(s) == len(o) or not len(a):
        raise InputError(
            f"arrivals, prompts and outputs need one entry a request, got {len(a)}, {len(s)}, {len(o)}"
        )
    for name, column, least in (("arrival", a, 0), ("prompt", s, 1), ("output", o, 1)):
        low = np.flatnonzero(column < least)
        if len(low):
            raise InputError(
                f"request {low[0]}: {name} must be at least {least}, got {column[low[0]]}"
            )
    large = np.flatnonzero(s + o > kv_tokens)
    if len(large):
        i = large[0]
        raise InputError(
            f"request {i} can never be served: {s[i]} + {o[i]} tokens exceed the budget of {kv_tokens}"
        )
    return a, s, o


def mc_sf_starts(
    arrival: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    kv_tokens: int,
    *,
    order: Order = "output",
    continue_on_misfit: bool = False,
) -> Ints:
    """Return the round in which each request starts, shape (requests,).

    ``order`` ``output`` is MC-SF, ties to the smaller prompt (``output-then-index``: to the earlier
    request); ``arrival`` is MC-Benchmark. Lengths are known exactly.
    """
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    n = len(a)
    volume = s * o + o * (o + 1) // 2
    keys = {
        "output": (np.arange(n), a, s, o),
        "output-then-index": (np.arange(n), a, o),
        "volume": (np.arange(n), a, volume),
        "peak": (np.arange(n), a, s + o),
        "arrival": (np.arange(n), a),
    }[order]
    queue = list(np.lexsort(keys))
    ends = np.zeros((1, n), np.int64)
    bases = np.zeros((1, n), np.int64)
    size = 0
    starts = np.full(n, -1, np.int64)
    t = int(a.min())
    while queue:
        while size and ends[0, 0] <= t:
            ends[0, : size - 1] = ends[0, 1:size].copy()
            bases[0, : size - 1] = bases[0, 1:size].copy()
            size -= 1
        left = []
        blocked = False
        for i in queue:
            if a[i] > t or (blocked and not continue_on_misfit):
                left.append(i)
                continue
            last = t + int(o[i])
            if shortfall(ends, bases, 0, size, t + 1, int(s[i]) + 1, last, kv_tokens, 0) == 0:
                insert(ends, bases, 0, size, last, int(s[i]) - t)
                size += 1
                starts[i] = t
            else:
                blocked = True
                left.append(i)
        queue = left
        t += 1
    return starts
