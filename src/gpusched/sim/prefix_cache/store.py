"""What a store of KV cache outside the engines saves a prompt, and how long loading from it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.sim.prefix_cache.replay import CacheReplay
from gpusched.traces.trace import Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReadSpeed:
    """How fast a tier of the store is read."""

    token_s: float
    """Seconds a token's KV cache takes, all drives together."""
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Served:
    """Requests as the engines see them: each arrives once what the store holds has been loaded."""

    trace: Trace
    """With ``stored_tokens``, in order of arrival at the engines."""
    row: Ints
    """Row in the original trace of each request."""
    load_s: Floats
    """Time each waited for the store: to be added to its TTFT."""


def serve_from_store(trace: Trace, replay: CacheReplay, speeds: Sequence[ReadSpeed]) -> Served:
    """Return the trace with what a replay of the store found for each request.

    Each tier is one queue, first come first served. All that the store holds of a prompt is loaded, also
    what the engines may still have, so loading is on the slow side.

    Raises:
        InputError: another number of tiers than the replay's, or rounds that arrive by think times.
    """
    if len(speeds) != replay.hit_tokens.shape[1]:
        raise InputError(
            f"speeds: give {replay.hit_tokens.shape[1]}, one a tier; got {len(speeds)}"
        )
    if trace.think_s is not None:
        raise InputError(
            f"{trace.name}: a replay of the store needs arrivals that are known beforehand, not think "
            "times; unroll the sessions first (planning.cache_size.days.unrolled)"
        )
    ready_s = trace.arrival_s.copy()
    for tier, speed in enumerate(speeds):
        tokens = replay.hit_tokens[:, tier]
        rows = np.flatnonzero(tokens)
        read_s = np.asarray(tokens[rows] * speed.token_s + speed.latency_s, np.float64)
        done_s = queue_ends_s(trace.arrival_s[rows], read_s)
        ready_s[rows] = np.maximum(ready_s[rows], done_s)
    order = np.argsort(ready_s, kind="stable").astype(np.int64)
    stored = replay.hit_tokens.sum(axis=1).astype(np.int32)
    seen = replace(trace, arrival_s=ready_s, stored_tokens=stored).take(order)
    return Served(seen, order, (ready_s - trace.arrival_s)[order])


def queue_ends_s(arrival_s: Floats, service_s: Floats) -> Floats:
    """Return when each is done in a queue of one server, first come first served (Lindley)."""
    work_s = np.cumsum(service_s)
    return np.asarray(work_s + np.maximum.accumulate(arrival_s - (work_s - service_s)))
