"""Sessions of a trace that only says which blocks of context its requests share."""

from dataclasses import replace

import numpy as np

from gpusched.errors import InputError
from gpusched.traces.trace import Trace

TOKEN_S = 0.03
"""Taken off the gap between rounds for every token of the answer before: the rest is think time."""

LEAST_COMMON = 16
"""Requests that begin alike before what they share counts as a system prompt, in short traces."""


def sessions_from_prefixes(trace: Trace) -> Trace:
    """Return a trace whose requests continue one another where their contexts grow.

    A request continues the last one before it whose whole prompt, in full blocks, begins its own and
    that nothing continues yet; blocks that begin more than a tenth of all requests are system prompts
    and make no session. Think times are the gaps between arrivals less ``TOKEN_S`` a token.

    Raises:
        InputError: the trace has no block ids.
    """
    prefix = trace.prefix
    if prefix is None:
        raise InputError(f"{trace.name}: has no block ids to tell sessions by")
    n = len(trace)
    full = np.minimum(np.diff(prefix.offsets), trace.prompt_tokens // prefix.block_tokens)
    common = np.bincount(prefix.block_ids, minlength=prefix.n_blocks) > max(n // 10, LEAST_COMMON)
    open_end: dict[int, int] = {}
    session = np.empty(n, np.int32)
    number = np.zeros(n, np.int32)
    think_s = np.zeros(n)
    sessions = 0
    for row in range(n):
        begin = prefix.offsets[row]
        own = prefix.block_ids[begin : begin + full[row]]
        own = own[~common[own]]
        before = -1
        for block in own[::-1].tolist():
            before = open_end.pop(block, -1)
            if before >= 0:
                break
        if before >= 0:
            session[row], number[row] = session[before], number[before] + 1
            gap_s = trace.arrival_s[row] - trace.arrival_s[before]
            think_s[row] = max(gap_s - TOKEN_S * float(trace.output_tokens[before]), 0.0)
        else:
            session[row] = sessions
            sessions += 1
        if len(own):
            open_end[int(own[-1])] = row
    found = replace(trace, session_id=session, round=number, think_s=think_s)
    return found.with_notes(
        f"{sessions} sessions told from contexts that grow; {int((number > 0).sum())} of {n} requests "
        "continue one"
    )
