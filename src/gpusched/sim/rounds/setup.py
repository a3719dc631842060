"""The arrays of a run with placed rounds or prompts by deadline."""

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.batching.discipline import discipline
from gpusched.policies.batching.on_time import LONGEST, SETS
from gpusched.policies.routing.choice import PER_ROUND
from gpusched.policies.routing.policy import RoutingPolicy
from gpusched.policies.routing.windowed import SLOTS
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.state import NONE, ROUND_SETTINGS, SESSION, WORKER, Rounds
from gpusched.traces.trace import Trace

NO_PREFIX_TOKENS = 1 << 40
"""Tokens of a prefix block where a block is a KV block of a history: no prompt fills one."""


def needs_rounds(fleet: Fleet) -> bool:
    """Whether a fleet's policies place rounds or look at prompts' deadlines."""
    routing, *_ = fleet.policies
    return routing.kind == PER_ROUND or any(discipline(p.batching).window for p in fleet.pools)


def session_of(trace: Trace) -> NDArray[np.int32]:
    """Return the number of each request's session; a request that waits for no other answer is one of
    its own."""
    if trace.think_s is None or trace.session_id is None or trace.round is None:
        return np.arange(len(trace), dtype=np.int32)
    _, numbers = np.unique(trace.session_id, return_inverse=True)
    return np.asarray(numbers, np.int32)


def continued_rounds(trace: Trace, followers: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Tell which requests continue the round before: their prompt is at least as long as its prompt
    and answer. A shorter one was rewritten, and nothing of the history is of use."""
    continues = np.zeros(len(trace), np.bool_)
    before = np.flatnonzero(followers >= 0)
    after = followers[before]
    context = trace.prompt_tokens[before] + trace.output_tokens[before]
    continues[after] = trace.prompt_tokens[after] >= context
    return continues


def rounds_of(
    routing: RoutingPolicy, trace: Trace, lanes: list[Pool], requests: NDArray[np.void]
) -> Rounds:
    """Lay out the arrays; ``requests`` get their sessions where histories are kept."""
    n = len(trace)
    keeps = routing.kind == PER_ROUND
    settings = np.zeros(1, ROUND_SETTINGS)
    settings["keeps"] = keeps
    for field in ("rule", "alpha", "beta", "ttft_s", "itl_s", "window_s"):
        settings[field] = getattr(routing, field)
    if keeps:
        requests["session"] = session_of(trace)
    sessions = np.zeros(int(requests["session"].max()) + 1 if keeps else 1, SESSION)
    for field in ("worker", "older", "newer"):
        sessions[field] = NONE
    workers = np.zeros(len(lanes), WORKER)
    workers["oldest"] = workers["newest"] = NONE
    for e, pool in enumerate(lanes):
        chosen = discipline(pool.batching)
        workers["window"][e] = chosen.window
        workers["ttft_s"][e] = chosen.ttft_s
    return Rounds(
        settings=settings,
        sessions=sessions,
        workers=workers,
        continues=continued_rounds(trace, requests["follower"]),
        relied=np.zeros(n, np.int32),
        predicted_s=np.zeros(n),
        history=np.zeros(n, np.int32),
        branch=np.zeros(n, np.int8),
        evicted=np.zeros(n, np.bool_),
        totals_s=np.zeros((len(lanes), SLOTS)),
        counts=np.zeros((len(lanes), SLOTS), np.int64),
        slots=np.full((len(lanes), SLOTS), -1, np.int64),
        remote_s=np.zeros(len(lanes)),
        candidates=np.zeros(LONGEST, np.int64),
        durations_s=np.zeros(LONGEST),
        deadlines_s=np.zeros(LONGEST),
        passed=np.zeros(LONGEST, np.int64),
        elapsed_s=np.zeros(SETS),
        on_time=np.zeros(SETS, np.int64),
        completions_s=np.zeros(SETS),
    )
