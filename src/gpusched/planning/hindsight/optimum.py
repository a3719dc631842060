"""The best schedule in hindsight, with a bound, by several methods."""

import time

import numpy as np
from numpy.typing import ArrayLike

from gpusched.errors import InputError
from gpusched.planning.hindsight.bounds import latency_bound, latest_completions
from gpusched.planning.hindsight.constraint import constraint_program, has_cp
from gpusched.planning.hindsight.improve import best_heuristic
from gpusched.planning.hindsight.prices import price_bound
from gpusched.planning.hindsight.program import time_indexed_program
from gpusched.planning.hindsight.schedule import HindsightSchedule, check_schedule
from gpusched.policies.batching.rounds import Ints, checked

METHODS = ("auto", "prices", "cp", "program", "plain")
FEW_COMPLETIONS = 1000
"""Useful pairs of request and completion up to which the program is faster than CP-SAT."""


def hindsight_optimum(
    arrival: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    kv_tokens: int,
    *,
    method: str = "auto",
    time_limit_s: float = 60.0,
    threads: int = 2,
    moves: int = 20_000,
    seed: int = 0,
) -> HindsightSchedule:
    """Return the best schedule found and a bound, arrays of shape (requests,) in rounds and tokens.

    ``prices`` anneals a schedule, with so many ``moves``, and bounds it by prices; ``cp`` goes on with
    CP-SAT (the extra ``ortools``), ``program`` with the time-indexed program on HiGHS, the rows of level
    2 and only the completions that could improve the schedule; ``auto`` is ``cp`` for large instances
    where it is installed, else ``program``. ``plain`` is the paper's program (A1)-(A4) alone, to compare
    with.

    Raises:
        InputError: a request can never be served, lengths are not positive, or the method is
            unknown or not installed.
    """
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "cp" and not has_cp():
        raise InputError("method cp needs OR-tools: pip install 'gpusched[ortools]'")
    began = time.perf_counter()
    arrived = int(a.sum())
    if method == "plain":
        starts = best_heuristic(a, s, o, kv_tokens, moves=0)
        latest = latest_completions(a, s, o, kv_tokens, int((starts + o).sum()))
        rounds = np.arange(int(latest.max()) + 1)
        allowed = (rounds >= (a + o)[:, None]) & (rounds <= latest[:, None])
        found, bound = time_indexed_program(
            a, s, o, kv_tokens, allowed, time_limit_s, threads, seed
        )
        bound -= arrived
    else:
        starts = best_heuristic(a, s, o, kv_tokens, moves=moves, seed=seed)
        found, bound, method = _improve(
            a, s, o, kv_tokens, starts, method, began + time_limit_s, threads, seed
        )
    starts = _better(starts, found, o)
    wrong = check_schedule(a, s, o, kv_tokens, starts)
    assert not wrong, wrong
    return HindsightSchedule(
        starts,
        starts + o,
        int((starts + o).sum()) - arrived,
        max(bound, 0.0),
        method,
        time.perf_counter() - began,
    )


def _improve(
    a: Ints,
    s: Ints,
    o: Ints,
    kv_tokens: int,
    starts: Ints,
    method: str,
    until_s: float,
    threads: int,
    seed: int,
) -> tuple[Ints | None, float, str]:
    """Return a better schedule, if one is found, a bound of the total latency, and the method."""
    arrived = int(a.sum())
    total = int((starts + o).sum()) - arrived
    latest = latest_completions(a, s, o, kv_tokens, total + arrived)
    last_round = int((starts + o).max() if method == "prices" else latest.max())
    prices = price_bound(a, s, o, kv_tokens, target=total, last_round=last_round)
    bound = max(prices.bound, latency_bound(a, s, o, kv_tokens))
    left_s = until_s - time.perf_counter()
    if method == "prices" or total < bound + 1.0 - 1e-6 or left_s <= 0.0:
        return None, bound, "prices"
    allowed = prices.below(total) & (np.arange(prices.excess.shape[1]) <= latest[:, None])
    if method == "auto":
        method = "cp" if has_cp() and allowed.sum() > FEW_COMPLETIONS else "program"
    if method == "cp":
        floor = int(np.ceil(bound - 1e-6)) + arrived
        found, sharper = constraint_program(
            a, s, o, kv_tokens, starts, latest, floor, left_s, threads, seed
        )
    else:
        found, sharper = time_indexed_program(
            a, s, o, kv_tokens, allowed, left_s, threads, seed, levels=(2,)
        )
        sharper = min(sharper, float(total + arrived))
    return found, max(bound, sharper - arrived), method


def _better(starts: Ints, found: Ints | None, o: Ints) -> Ints:
    return found if found is not None and (found + o).sum() < (starts + o).sum() else starts
