"""Generate traces from profiles."""

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.traces.arrivals import arrival_times
from gpusched.traces.profiles import Profile, draw, load_profile, paired_shares
from gpusched.traces.trace import Prefixes, Trace

BLOCK_TOKENS = 64


def generate(
    profile: str,
    rate_rps: float,
    duration_s: float,
    *,
    arrivals: str = "poisson",
    cv: float = 2.0,
    seed: int = 0,
    limit: int | None = None,
) -> Trace:
    """Return a trace of mean rate ``rate_rps`` with the lengths of a profile.

    A profile with sessions gives rounds that arrive after think times; sessions then start at the
    rate that gives ``rate_rps`` requests a second, and block ids let rounds share KV cache.

    Raises:
        InputError: unknown profile or arrival process, or a rate so low that nothing arrives.
    """
    shape = load_profile(profile)
    rng = np.random.default_rng(seed)
    rounds_mean = _mean_rounds(shape) if shape.rounds else 1.0
    times_s = arrival_times(arrivals, rate_rps / rounds_mean, duration_s, cv=cv, rng=rng)
    if limit is not None:
        times_s = times_s[:limit]
    if not len(times_s):
        raise InputError(
            f"profile {profile}: nothing arrives at {rate_rps:g} requests a second within "
            f"{duration_s:g} s; raise rate_rps or duration_s"
        )
    trace = _sessions(shape, times_s, rng) if shape.rounds else _singles(shape, times_s, rng)
    if limit is not None and len(trace) > limit:
        trace = trace.take(np.arange(limit))
    return trace


def _singles(shape: Profile, times_s: NDArray[np.float64], rng: np.random.Generator) -> Trace:
    prompt_share, output_share = paired_shares(rng, len(times_s), shape.correlation)
    return Trace(
        arrival_s=times_s,
        prompt_tokens=_whole(draw(shape.prompt_tokens, prompt_share)),
        output_tokens=_whole(draw(shape.output_tokens, output_share)),
        name=shape.name,
    )


def _sessions(shape: Profile, times_s: NDArray[np.float64], rng: np.random.Generator) -> Trace:
    """Rounds whose prompt is the session so far and some new tokens."""
    sessions = len(times_s)
    wanted = _whole(draw(shape.rounds, rng.random(sessions)))
    n = int(wanted.sum())
    session = np.repeat(np.arange(sessions, dtype=np.int32), wanted)
    starts = np.concatenate(([0], np.cumsum(wanted)))[:-1]
    rounds = (np.arange(n) - np.repeat(starts, wanted)).astype(np.int32)
    output = _whole(draw(shape.output_tokens, rng.random(n))).astype(np.int64)
    new = _whole(draw(shape.growth_tokens, rng.random(n))).astype(np.int64)
    first = np.maximum(_whole(draw(shape.prompt_tokens, rng.random(sessions))), 1)
    new[starts] = np.maximum(first, shape.shared_tokens + 1)
    added = new.copy()
    added[1:] += np.where(rounds[1:] > 0, output[:-1], 0)
    total = np.cumsum(added)
    prompt = total - np.repeat(total[starts] - added[starts], wanted)
    keep = prompt + output <= shape.max_context_tokens
    keep |= rounds == 0
    prompt = np.minimum(prompt, shape.max_context_tokens)
    think_s = np.where(rounds > 0, draw(shape.think_s, rng.random(n)), 0.0)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(times_s[session[rows]], kind="stable")]
    return Trace(
        arrival_s=times_s[session[rows]],
        prompt_tokens=prompt[rows].astype(np.int32),
        output_tokens=output[rows].astype(np.int32),
        session_id=session[rows],
        round=rounds[rows],
        think_s=think_s[rows],
        prefix=_session_blocks(session[rows], prompt[rows], output[rows], shape.shared_tokens),
        name=shape.name,
    )


def _session_blocks(
    session: NDArray[np.int32],
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    shared_tokens: int,
) -> Prefixes:
    """Block ids of contexts that only grow: shared ones first, then the session's own in order."""
    shared = shared_tokens // BLOCK_TOKENS
    blocks = (prompt + output) // BLOCK_TOKENS
    longest = np.zeros(int(session.max()) + 1, np.int64)
    np.maximum.at(longest, session, np.maximum(blocks - shared, 0))
    base = shared + np.concatenate(([0], np.cumsum(longest)))[:-1]
    offsets = np.concatenate(([0], np.cumsum(blocks))).astype(np.int64)
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
    own = np.repeat(base[session], blocks) + position - shared
    return Prefixes(
        offsets, np.where(position < shared, position, own).astype(np.int32), BLOCK_TOKENS
    )


def _whole(values: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.maximum(np.rint(values), 1).astype(np.int32)


def _mean_rounds(shape: Profile) -> float:
    """Return the mean rounds of a session, those beyond the longest context left out."""
    pilot = 2000
    return len(_sessions(shape, np.zeros(pilot), np.random.default_rng(0))) / pilot
