"""Groups of WAIT and Nested WAIT set anew while a simulation runs, by what it has revealed."""

from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import compiled_for
from gpusched.policies.batching.discipline import Discipline
from gpusched.policies.batching.estimation import GroupEstimator, Groups
from gpusched.sim import kernel, state
from gpusched.sim.fleet import Pool
from gpusched.sim.grouping import estimator_for, learns

Rows = NDArray[np.int64]


@dataclass
class LearningPool:
    """Engines ``first .. last - 1``, whose groups are set every ``period_s``."""

    first: int
    last: int
    period_s: float
    estimator: GroupEstimator
    periods: int = 1
    rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of the arrivals so far, from number ``base`` on."""
    base: int = 0

    @property
    def due_s(self) -> float:
        """When the groups are set next."""
        return self.periods * self.period_s


class Reestimation:
    """The pools of a fleet that learn, and the arrivals that they have not yet been told of."""

    def __init__(self, pools: list[tuple[Pool, Discipline, int]], s: state.State) -> None:
        self.pools = [
            LearningPool(
                first, first + pool.lanes, chosen.reestimate_s, estimator_for(pool, chosen)
            )
            for pool, chosen, first in pools
            if learns(chosen)
        ]
        self._read = 0
        self._later = np.isnan(s.requests["arrival_s"])
        self._unseen = np.flatnonzero(self._later)
        if self.pools:
            self._regroup = compiled_for(kernel.regroup, s, 0, 0, 0.0)

    @property
    def due_s(self) -> float:
        """When some groups are set next."""
        return min((pool.due_s for pool in self.pools), default=inf)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to tell of loads that were estimated to be unstable."""
        return tuple(pool.estimator.note for pool in self.pools if pool.estimator.note)

    def update(self, s: state.State) -> None:
        """Set the groups that are due, the simulation having come to that time."""
        now_s = self.due_s
        arrived = self._arrived(s)
        engine = s.requests["engine"][arrived]
        for pool in self.pools:
            own = arrived[(engine >= pool.first) & (engine < pool.last)]
            pool.rows = np.concatenate((pool.rows, own))
            seen = s.requests[own]
            pool.estimator.observe_arrival(seen["arrival_s"], seen["prompt"], seen["predicted"])
            if pool.due_s > now_s:
                continue
            pool.periods += 1
            self._observe(s, pool, now_s)
            before = pool.estimator.groups
            found = pool.estimator.thresholds(now_s)
            if found is not before:
                set_groups(s, pool.first, pool.last, found)
                self._regroup(s, pool.first, pool.last, now_s)

    def _arrived(self, s: state.State) -> Rows:
        """Rows of requests that have been accepted since the last time, in order of arrival."""
        rows = np.arange(self._read, int(s.counters[state.NEXT_ROW]))
        self._read += len(rows)
        unseen = np.concatenate((self._unseen, rows[~self._later[rows]]))
        states = s.requests["state"][unseen]
        outside = np.isin(states, (state.ABSENT, state.HELD))
        self._unseen = unseen[outside]
        arrived = unseen[~outside & (states != state.REJECTED)]
        order = np.lexsort((arrived, s.requests["arrival_s"][arrived]))
        return np.asarray(arrived[order], np.int64)

    def _observe(self, s: state.State, pool: LearningPool, now_s: float) -> None:
        """Tell the estimator how far the requests of its sample have come."""
        numbers = pool.estimator.numbers
        if not len(numbers):
            return
        pool.rows = pool.rows[numbers[0] - pool.base :]
        pool.base = int(numbers[0])
        sample = s.requests[pool.rows[numbers - pool.base]]
        produced = sample["produced"].astype(np.int64)
        decodes = sample["state"] == state.DECODE
        steps = np.array([steps_by(s.engines[e], now_s) for e in range(pool.first, pool.last)])
        reached = steps[sample["engine"][decodes] - pool.first]
        left = sample["finish_step"][decodes] - reached
        produced[decodes] = sample["output"][decodes] - left
        done = sample["state"] == state.DONE
        pool.estimator.observe_end(numbers[done], produced[done])
        pool.estimator.censor(numbers[~done], produced[~done])


def steps_by(engine: np.void, now_s: float) -> int:
    """Return the decode step an engine has completed by a time within its leap."""
    steps = np.arange(1, int(engine["steps"]) + 1 if engine["active"] else 1)
    durations = engine["first_s"] * steps + engine["slope_s"] * 0.5 * steps * (steps - 1)
    completed = np.searchsorted(engine["start_s"] + durations, now_s, side="right")
    return int(engine["step"]) + int(completed)


def set_groups(s: state.State, first: int, last: int, groups: Groups) -> None:
    """Write groups into the settings of engines ``first .. last - 1``."""
    count = len(groups.ends)
    s.engines["groups"][first:last] = count
    s.engines["hold_s"][first:last] = groups.hold_s
    s.engines["max_seqs"][first:last] = groups.seats
    s.group_ends[first:last, :count] = groups.ends
    s.group_thresholds[first:last, :count] = groups.thresholds
    s.group_caps[first:last, :count] = groups.caps
