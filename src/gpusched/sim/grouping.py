"""Groups of an engine whose discipline starts requests in groups, set from the traffic."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.batching.discipline import GROUPED, Discipline
from gpusched.sim.fleet import Pool
from gpusched.traces.trace import Trace


class Groups(NamedTuple):
    """Settings of the groups, one entry each."""

    ends: NDArray[np.int64]
    """Largest output length, or decode progress, tokens."""
    thresholds: NDArray[np.int64]
    caps: NDArray[np.int64]
    hold_s: float


def groups_for(pool: Pool, chosen: Discipline, trace: Trace, engines: int) -> Groups:
    """Return the groups of one of a pool's engines when ``engines`` share the traffic."""
    if chosen.gate != GROUPED:
        one = np.ones(1, np.int64)
        return Groups(one, one, one, 0.0)
    raise NotImplementedError
