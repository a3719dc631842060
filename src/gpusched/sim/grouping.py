"""Groups of an engine whose discipline starts requests in groups, set from the traffic."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.batching.discipline import GROUPED, Discipline
from gpusched.policies.batching.equilibrium import EngineTime, equilibrium, types_of
from gpusched.policies.batching.thresholds import nested_thresholds, wait_thresholds
from gpusched.sim.fleet import Pool
from gpusched.traces.trace import Trace

MARGIN = 0.98
"""Share of the stable rate that thresholds are set for when the load is beyond it."""


class Groups(NamedTuple):
    """Settings of the groups, one entry each."""

    ends: NDArray[np.int64]
    """Largest output length, or output tokens given at the end."""
    thresholds: NDArray[np.int64]
    caps: NDArray[np.int64]
    hold_s: float
    note: str = ""
    """What was assumed where the load is unstable."""


def groups_for(
    pool: Pool, chosen: Discipline, trace: Trace, predicted: NDArray[np.int32], engines: int
) -> Groups:
    """Return the groups of one of a pool's engines when ``engines`` share the traffic evenly.

    Beyond the stable load the thresholds are those of the stable load, and a note says so.
    """
    one = np.ones(1, np.int64)
    if chosen.gate != GROUPED:
        return Groups(one, one, one, 0.0)
    prompt, output = trace.prompt_tokens, trace.output_tokens
    rate_rps = len(trace) / max(trace.duration_s, 1e-9) / engines
    time = EngineTime(pool.timing)
    window = pool.timing.window
    kv_tokens = float(pool.kv_blocks // pool.pipeline_stages * pool.block_tokens)
    key = None if chosen.name == "nested-wait" else predicted
    types = types_of(prompt, output, rate_rps, chosen.segments, window, key)
    balance = equilibrium(types, time, kv_tokens)
    note = ""
    if not balance.stable:
        stable_rps = MARGIN * balance.stable_multiple * rate_rps
        note = (
            f"{chosen.name}: {rate_rps:.4g} requests/s an engine are unstable, at most "
            f"{balance.stable_multiple * rate_rps:.4g} are stable; thresholds are set for "
            f"{stable_rps:.4g}"
        )
        types, rate_rps = types.scale_rate(stable_rps / rate_rps), stable_rps
    if chosen.name == "nested-wait":
        found = nested_thresholds(
            prompt, output, rate_rps, time, kv_tokens,
            segments=chosen.segments, slack=chosen.slack, window=window,
        )  # fmt: skip
    else:
        found = wait_thresholds(types, time, kv_tokens, slack=chosen.slack)
    caps = found.caps
    if chosen.cap:
        caps = np.maximum(caps * chosen.cap // max(int(caps.sum()), 1), 1)
    hold_s = chosen.hold_s or found.hold_s
    return Groups(found.ends, found.starts, caps, hold_s, note)
