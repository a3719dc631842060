"""Records the pipeline kernel works on.

Places are the nodes and, last, the front. A *job* is a request on its pipeline: a prompt, then one
token after another. Links deliver jobs in order, so what is on its way to a place is one list
sorted by arrival. A node holds one queue for each layer at which jobs may enter it; between two
such layers, its *segments*, a batch stays together.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NONE = -1
"""End of a linked list."""

SERIES_BINS = 256
"""Bins of the time series; they double in width when time runs past them."""

REACHED, DONE, NEEDS_JOBS = range(3)
"""Why the kernel returned: the time asked for, nothing left to do, no free job."""

NODE = np.dtype(
    [
        ("end", "i4"),  # first layer it does not hold; 0 for the front
        ("layers", "i4"),
        ("kind", "i4"),
        ("queue", "i4"),  # of its first segment
        ("segments", "i4"),
        ("segment", "i4"),  # that runs, or ran last
        ("way_head", "i4"),  # jobs on their way here
        ("way_tail", "i4"),
        ("batch_head", "i4"),
        ("batch_tail", "i4"),
        ("up", "i4"),
        ("prompt_requests", "i4"),  # most of one batch
        ("prompt_tokens", "i4"),
        ("decode_requests", "i4"),
        ("decode_context", "i8"),
        ("order", "i8"),  # jobs queued so far
        ("copied_tokens", "i8"),  # received since the first segment last started
        ("kv_capacity", "f8"),  # token-layers
        ("kv_used", "f8"),
        ("kv_reserved", "f8"),  # the router's estimate
        ("kv_peak", "f8"),
        ("kv_reserved_peak", "f8"),
        ("finish_s", "f8"),  # of the running segment; inf when idle
        ("busy_s", "f8"),
        ("prompt_busy_s", "f8"),
        ("wait_s", "f8"),
        ("waits", "i8"),
        ("iterations", "i8"),
        ("layer_iterations", "i8"),
        ("batched", "i8"),  # jobs over all iterations
    ]
)

QUEUE = np.dtype(
    [
        ("layers", "i4"),  # of the segment
        ("prompt_head", "i4"),
        ("prompt_tail", "i4"),
        ("decode_head", "i4"),
        ("decode_tail", "i4"),
        ("length", "i4"),
    ]
)

JOB = np.dtype(
    [
        ("ready_s", "f8"),  # reaches the place it is going to
        ("sent_s", "f8"),  # left for it
        ("issued_s", "f8"),  # this iteration left the front
        ("order", "i8"),
        ("next", "i4"),
        ("previous", "i4"),
        ("request", "i4"),
        ("tokens", "i4"),  # of this iteration
        ("context", "i4"),  # tokens cached before this iteration
        ("expected", "i4"),  # tokens that the router reserves
        ("hop", "i2"),  # in its route: the edge it takes or took last
        ("hops", "i2"),  # edges of the route known so far
        ("prompt", "i2"),  # whether this iteration is one
        ("live", "i2"),
    ]
)
"""One cache line."""

EDGE = np.dtype(
    [
        ("origin", "i4"),
        ("to", "i4"),
        ("queue", "i4"),  # at the node it leads to
        ("layers", "i4"),  # that run there
        ("s_per_token", "f8"),
        ("latency_s", "f8"),
        ("free_s", "f8"),  # end of the last transmission
    ]
)

REQUEST = np.dtype(
    [
        ("arrival_s", "f8"),
        ("dispatched_s", "f8"),  # first got a pipeline
        ("first_s", "f8"),
        ("finish_s", "f8"),
        ("prompt_tokens", "i4"),
        ("output_tokens", "i4"),
        ("produced", "i4"),
        ("restarts", "i4"),
        ("hops", "i4"),
        ("rejected", "i4"),
        ("next", "i4"),
    ]
)

GLOBALS = np.dtype(
    [
        ("now_s", "f8"),
        ("warmup_s", "f8"),
        ("policy", "i8"),
        ("whole_route", "i8"),  # whether the route is chosen at the front
        ("seed", "i8"),
        ("turn", "i8"),
        ("mask_kv", "i8"),
        ("kv_high_water", "f8"),
        ("output_share", "f8"),
        ("mean_output_tokens", "f8"),
        ("smoothing", "f8"),
        ("copy_s_per_token", "f8"),
        ("layers", "i8"),
        ("longest_prompt", "i8"),
        ("closed_loop", "i8"),
        ("by_usage", "i8"),  # feed the closed loop by KV usage
        ("drop", "i8"),  # requests that find no pipeline at once
        ("feed_high_water", "f8"),
        ("feed_delay_s", "f8"),
        ("initial", "i8"),  # requests at the start of a closed loop
        ("issued", "i8"),
        ("arrived", "i8"),
        ("due_head", "i8"),
        ("due_tail", "i8"),
        ("in_flight", "i8"),
        ("waiting_head", "i8"),
        ("waiting_tail", "i8"),
        ("free_job", "i8"),
        ("starved", "i8"),
        ("decode_tokens", "i8"),  # after the warm-up
        ("prompt_tokens", "i8"),
        ("bin_s", "f8"),
        ("steps", "i8"),
    ]
)


class State(NamedTuple):
    """Everything the kernel changes, and the tables it reads."""

    g: NDArray[np.void]
    """``GLOBALS``, shape (1,)."""
    nodes: NDArray[np.void]
    """Shape (n + 1,), the front last."""
    queues: NDArray[np.void]
    jobs: NDArray[np.void]
    routes: NDArray[np.int32]
    """Edges of each job's pipeline, shape (jobs, n + 1)."""
    edges: NDArray[np.void]
    edges_at: NDArray[np.int64]
    """Edges of place p are ``edges_at[p] .. edges_at[p + 1] - 1``; shape (n + 2,)."""
    usable: NDArray[np.bool_]
    open_: NDArray[np.bool_]
    weight: NDArray[np.float64]
    step: NDArray[np.float64]
    """Load of one token: 1 / weight, or 0 without weight."""
    load: NDArray[np.float64]
    old_load: NDArray[np.float64]
    """Loads before the route that is being chosen, shape (n + 1,)."""
    mean_s: NDArray[np.float64]
    """SWARM: mean service time by edge."""
    priority: NDArray[np.float64]
    length: NDArray[np.float64]
    requests: NDArray[np.void]
    due_s: NDArray[np.float64]
    """Arrivals that the closed loop has issued."""
    prompt_s: NDArray[np.float64]
    """Time of one layer, shape (kinds, most prompt tokens + 1)."""
    decode_s: NDArray[np.float64]
    """Shape (kinds, most decode requests + 1)."""
    next_s: NDArray[np.float64]
    """Next event of each place, padded to a power of two."""
    winner: NDArray[np.int32]
    """Tournament over ``next_s``: ``winner[1]`` is the place whose event is next."""
    layer_free: NDArray[np.float64]
    layer_total: NDArray[np.float64]
    gap_counts: NDArray[np.int64]
    gap_totals: NDArray[np.void]
    busy: NDArray[np.float64]
    """Busy seconds, shape (nodes, bins)."""
    kv: NDArray[np.float64]
    """Largest token-layers in use, shape (nodes, bins)."""
    tokens: NDArray[np.float64]
    """Tokens given at the front, shape (bins,)."""
