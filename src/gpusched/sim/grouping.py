"""Groups of an engine whose discipline starts requests in groups: from the whole trace, or learned."""

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.batching.discipline import GROUPED, Discipline
from gpusched.policies.batching.equilibrium import EngineTime, lengths_of
from gpusched.policies.batching.estimation import GroupEstimator, Groups, Load, groups_of
from gpusched.policies.batching.thresholds import segment_ends
from gpusched.sim.fleet import Pool
from gpusched.traces.trace import Trace


def groups_for(
    pool: Pool, chosen: Discipline, trace: Trace, predicted: NDArray[np.int32], engines: int
) -> Groups:
    """Return the groups with which one of a pool's engines begins.

    They are those before anything is known, unless the discipline asks for thresholds of the whole
    trace; ``engines`` then share its traffic evenly.

    Raises:
        InputError: the discipline's own thresholds are outside their region.
    """
    if chosen.gate != GROUPED:
        one = np.ones(1, np.int64)
        return Groups(one, one, one, seats(pool), 0.0)
    if learns(chosen):
        return estimator_for(pool, chosen).groups
    prompt, steps = lengths_of(trace.prompt_tokens, trace.output_tokens)
    rate_rps = len(trace) / max(trace.duration_s, 1e-9) / engines
    if chosen.name == "nested-wait":
        ends = segment_ends(steps, chosen.segments)
        group = np.zeros(len(steps), np.int64)
    else:
        key = predicted.astype(np.int64) - 1
        cuts = np.arange(1, chosen.segments + 1) / chosen.segments
        ends = np.unique(np.quantile(key, cuts, method="inverted_cdf"))
        group = np.searchsorted(ends, key)
    rates = rate_rps * np.bincount(group) / len(group)
    load = Load(rates, ends, prompt, steps + 1.0, np.ones(len(steps)), group)
    found = groups_of(chosen, load, EngineTime(pool.timing), kv_tokens(pool), pool.timing.window)
    note = f"{chosen.name}: groups are set from the whole trace, its future included"
    return found._replace(
        seats=min(found.seats, seats(pool)), note="; ".join(filter(None, (note, found.note)))
    )


def learns(chosen: Discipline) -> bool:
    """Whether a discipline's groups are set by the traffic seen so far."""
    chosen_freely = chosen.thresholds == "auto"
    return chosen.gate == GROUPED and chosen.reestimate_s > 0 and chosen_freely


def estimator_for(pool: Pool, chosen: Discipline) -> GroupEstimator:
    """Return what sets the groups of a pool's engines while they run."""
    return GroupEstimator(
        chosen,
        EngineTime(pool.timing),
        kv_tokens(pool),
        seats=seats(pool),
        engines=pool.lanes,
        window=pool.timing.window,
    )


def seats(pool: Pool) -> int:
    """Sequences of one of a pool's engines."""
    return max(pool.max_num_seqs // pool.pipeline_stages, 1)


def kv_tokens(pool: Pool) -> float:
    """KV tokens of one of a pool's engines."""
    return float(pool.kv_blocks // pool.pipeline_stages * pool.block_tokens)
