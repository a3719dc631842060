"""How many sessions a split serves in time, by queueing formulas: the order of the shortlist.

The prefill workers are an M/G/c queue (Allen and Cunneen's mean wait, an exponential tail given a
wait); a decode worker's batch is about Poisson around the fixed point ``b = tokens a second x time of a
token``. Rounds of a session are taken as independent. Good for ranking, not as a promise.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import poisson

from gpusched.planning.rounds.load import RoundLoad
from gpusched.planning.rounds.split import Split
from gpusched.planning.rounds.workers import Kind

Floats = NDArray[np.float64]

OVERLOADED = 1e-3
"""Share in time of an overloaded pool, over its load: low, and lower the more it is overloaded."""


def wait_probability(servers: int, load: float) -> float:
    """Return Erlang's C: the probability to wait with ``load`` servers busy in the mean."""
    if load >= servers:
        return 1.0
    blocked = float(poisson.pmf(servers, load) / poisson.cdf(servers, load))
    return blocked / (1.0 - load / servers * (1.0 - blocked))


def in_time(
    load: RoundLoad,
    kinds: list[Kind],
    split: Split,
    *,
    ttft_s: float,
    tpot_s: float,
    local_share: float,
    by_session: bool,
) -> float:
    """Return the share of sessions, or of rounds, that meet both bounds, in 0 to 1."""
    share = _prefills_in_time(load, kinds, split.prefill, ttft_s, local_share)
    on_time = share * _tokens_in_time(load, kinds, split.decode, tpot_s)
    if not by_session:
        return float(on_time.mean())
    with np.errstate(divide="ignore"):
        logs = np.log(on_time)
    return float(np.exp(np.bincount(load.session, np.maximum(logs, -700.0))).mean())


def _prefills_in_time(
    load: RoundLoad, kinds: list[Kind], workers: tuple[int, ...], ttft_s: float, local_share: float
) -> Floats:
    speed = np.array([n * kind.prefill_speed for n, kind in zip(workers, kinds, strict=True)])
    use = 1.0 / speed.sum()
    served_s = np.zeros_like(load.new_tokens)
    for share, kind in zip(speed / speed.sum(), kinds, strict=True):
        if share > 0:
            served_s += share * kind.prefill_s
    if not np.isfinite(ttft_s):
        return np.ones_like(served_s)
    if use >= 1.0:
        return np.where(served_s <= ttft_s, OVERLOADED / use, 0.0)
    weight = np.where(load.first, 1.0, 1.0 - local_share)
    mean = float(np.average(served_s, weights=weight))
    variation = float(np.average(served_s**2, weights=weight)) / mean**2 - 1.0
    servers = sum(workers)
    waits = wait_probability(servers, use * servers)
    wait_s = mean / (servers * (1.0 - use)) * (1.0 + variation) / 2.0
    left_s = ttft_s - served_s
    return np.where(left_s >= 0, 1.0 - waits * np.exp(-np.maximum(left_s, 0.0) / wait_s), 0.0)


def _tokens_in_time(
    load: RoundLoad, kinds: list[Kind], workers: tuple[int, ...], tpot_s: float
) -> float:
    speed = np.array([n * kind.decode_speed for n, kind in zip(workers, kinds, strict=True)])
    shares, on_time = speed / speed.sum(), 0.0
    for share, count, kind in zip(shares, workers, kinds, strict=True):
        if not count:
            continue
        rate = load.decode_tokens_per_s * share / count
        batch = np.arange(1, len(kind.step_s) + 1)
        enough = np.flatnonzero(batch / kind.step_s >= rate)
        allowed = np.flatnonzero(kind.step_s <= tpot_s)
        if len(enough) and len(allowed):
            needed = rate * float(kind.step_s[enough[0]])
            on_time += share * float(poisson.cdf(allowed[-1] + 1, needed))
    return on_time
