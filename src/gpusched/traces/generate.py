"""Generate traces from profiles."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.traces.arrivals import arrival_times
from gpusched.traces.profiles import Profile, draw, load_profile, paired_shares
from gpusched.traces.trace import Prefixes, Trace

BLOCK_TOKENS = 64
ROWS_AT_ONCE = 4096
"""Of a trace whose block ids are made together: contexts can be thousands of blocks long."""


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
    rate that gives ``rate_rps`` requests a second, and block ids let rounds share KV cache. So they do
    for questions about the same document.

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
    make = _sessions if shape.rounds else _questions if shape.documents else _singles
    trace = make(shape, times_s, rng)
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


def _questions(shape: Profile, times_s: NDArray[np.float64], rng: np.random.Generator) -> Trace:
    """Single questions about documents, each document's blocks shared by all that ask about it."""
    n = len(times_s)
    length = _whole(draw(shape.prompt_tokens, rng.random(shape.documents))).astype(np.int64)
    weight = np.arange(1, shape.documents + 1) ** -shape.popularity
    asked = rng.choice(shape.documents, n, p=weight / weight.sum())
    question = _whole(draw(shape.growth_tokens, rng.random(n)))
    count = length // BLOCK_TOKENS
    first = np.concatenate(([0], np.cumsum(count)))[:-1]
    offsets = np.concatenate(([0], np.cumsum(count[asked]))).astype(np.int64)
    ids = np.arange(offsets[-1]) + np.repeat(first[asked] - offsets[:-1], count[asked])
    _, dense = np.unique(ids, return_inverse=True)
    return Trace(
        arrival_s=times_s,
        prompt_tokens=(length[asked] + question).astype(np.int32),
        output_tokens=_whole(draw(shape.output_tokens, rng.random(n))),
        prefix=Prefixes(offsets, dense.astype(np.int32), BLOCK_TOKENS),
        name=shape.name,
    )


class Rounds(NamedTuple):
    """Rounds of sessions, an entry each, in order of session and round."""

    session: NDArray[np.int32]
    number: NDArray[np.int32]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    think_s: NDArray[np.float64]


def _rounds(shape: Profile, sessions: int, rng: np.random.Generator) -> Rounds:
    """Draw rounds whose prompt is the session so far and some new tokens."""
    wanted = _whole(draw(shape.rounds, rng.random(sessions)))
    n = int(wanted.sum())
    session = np.repeat(np.arange(sessions, dtype=np.int32), wanted)
    starts = np.concatenate(([0], np.cumsum(wanted)))[:-1]
    number = (np.arange(n) - np.repeat(starts, wanted)).astype(np.int32)
    output = _whole(draw(shape.output_tokens, rng.random(n))).astype(np.int64)
    new = _whole(draw(shape.growth_tokens, rng.random(n))).astype(np.int64)
    first = np.maximum(_whole(draw(shape.prompt_tokens, rng.random(sessions))), 1)
    new[starts] = np.maximum(first, shape.shared_tokens + 1)
    added = new.copy()
    added[1:] += np.where(number[1:] > 0, output[:-1], 0)
    total = np.cumsum(added)
    prompt = total - np.repeat(total[starts] - added[starts], wanted)
    keep = (prompt + output <= shape.max_context_tokens) | (number == 0)
    prompt = np.minimum(prompt, shape.max_context_tokens)
    think_s = np.where(number > 0, draw(shape.think_s, rng.random(n)), 0.0)
    return Rounds(session[keep], number[keep], prompt[keep], output[keep], think_s[keep])


def _sessions(shape: Profile, times_s: NDArray[np.float64], rng: np.random.Generator) -> Trace:
    """Sessions that start at the given times."""
    drawn = _rounds(shape, len(times_s), rng)
    order = np.argsort(times_s[drawn.session], kind="stable")
    session = drawn.session[order]
    prompt, output = drawn.prompt_tokens[order], drawn.output_tokens[order]
    return Trace(
        arrival_s=times_s[session],
        prompt_tokens=prompt.astype(np.int32),
        output_tokens=output.astype(np.int32),
        session_id=session,
        round=drawn.number[order],
        think_s=drawn.think_s[order],
        prefix=_session_blocks(session, prompt, output, shape.shared_tokens),
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
    base = np.concatenate(([0], np.cumsum(longest)))[:-1]
    offsets = np.concatenate(([0], np.cumsum(blocks))).astype(np.int64)
    ids = np.empty(offsets[-1], np.int32)
    for first in range(0, len(session), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        count, begin = blocks[part], offsets[:-1][part]
        position = np.arange(begin[0], begin[-1] + count[-1]) - np.repeat(begin, count)
        own = np.repeat(base[session[part]], count) + position
        ids[begin[0] : begin[-1] + count[-1]] = np.where(position < shared, position, own)
    return Prefixes(offsets, ids, BLOCK_TOKENS)


def _whole(values: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.maximum(np.rint(values), 1).astype(np.int32)


def _mean_rounds(shape: Profile) -> float:
    """Return the mean rounds of a session, those beyond the longest context left out."""
    pilot = 2000
    return len(_rounds(shape, pilot, np.random.default_rng(0)).session) / pilot
