"""Days of requests: a trace's content, over and over, at a load that follows the hours."""

from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.traces.trace import Prefixes, Trace

Floats = NDArray[np.float64]
HOUR_S = 3600.0
TOKEN_S = 0.03
"""Time that an answer's token is taken to need where rounds are given arrival times."""


def unrolled(trace: Trace, token_s: float = TOKEN_S) -> Trace:
    """Return a trace whose rounds arrive at known times: the round before, its answer at ``token_s`` a
    token, then the think time. Traces without think times come back as they are."""
    if trace.think_s is None or trace.session_id is None or trace.round is None:
        return trace
    order = np.lexsort((trace.round, trace.session_id))
    first = np.concatenate(([True], np.diff(trace.session_id[order]) != 0))
    gap_s = np.zeros(len(trace))
    gap_s[1:] = trace.output_tokens[order][:-1] * token_s + trace.think_s[order][1:]
    gap_s[first] = 0.0
    total_s = np.cumsum(gap_s)
    starts = np.flatnonzero(first)
    since_s = total_s - np.repeat(total_s[starts], np.diff(np.append(starts, len(trace))))
    arrival_s = np.empty(len(trace))
    arrival_s[order] = np.repeat(
        trace.arrival_s[order][starts], np.diff(np.append(starts, len(trace)))
    )
    arrival_s[order] += since_s
    flat = replace(trace, arrival_s=arrival_s, think_s=None)
    return flat.take(np.argsort(arrival_s, kind="stable").astype(np.int64))


def days_of(trace: Trace, requests_per_s: Floats) -> Trace:
    """Return hours of the given loads, filled with the trace's requests in order.

    The trace's own clock is stretched, so that its bursts stay. Where it ends it begins anew with
    other content: repeats share no blocks. Rounds keep their order, not their think times.

    Raises:
        InputError: no request in all hours, or think times.
    """
    if trace.think_s is not None:
        raise InputError(f"{trace.name}: unroll the sessions before days are made of them")
    edges = np.concatenate(([0.0], np.cumsum(requests_per_s * HOUR_S)))
    wanted = int(edges[-1])
    if wanted < 1 or not len(trace):
        raise InputError("load: less than one request in all hours; raise the workload's rate")
    copies = ceil(wanted / len(trace)) + 1
    span_s = trace.duration_s * (1 + 1 / len(trace)) if trace.duration_s else 1.0
    own = trace.arrival_s / span_s * len(trace)
    place = np.concatenate([own + copy * len(trace) for copy in range(copies)])
    rows = np.tile(np.arange(len(trace), dtype=np.int64), copies)
    kept = place < edges[-1]
    hours_s = np.arange(len(edges)) * HOUR_S
    arrival_s = np.interp(place[kept], edges, hours_s)
    copy = np.repeat(np.arange(copies), len(trace))[kept]
    made = replace(trace, prefix=None).take(rows[kept])
    return replace(made, arrival_s=arrival_s, prefix=_fresh(trace.prefix, rows[kept], copy))


def _fresh(
    prefix: Prefixes | None, rows: NDArray[np.int64], copy: NDArray[np.int64]
) -> Prefixes | None:
    """Take rows, each copy's blocks under ids of their own."""
    if prefix is None:
        return None
    lengths = np.diff(prefix.offsets)[rows]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    index = np.repeat(prefix.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    ids = prefix.block_ids[index].astype(np.int64) + np.repeat(copy, lengths) * prefix.n_blocks
    _, dense = np.unique(ids, return_inverse=True)
    return Prefixes(offsets, dense.astype(np.int32), prefix.block_tokens)
