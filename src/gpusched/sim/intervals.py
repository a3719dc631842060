"""How busy the engines were in each interval of a simulation."""

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.state import State

Floats = NDArray[np.float64]


class Intervals:
    """Reads the engines' busy time at the end of every interval."""

    def __init__(
        self, interval_s: float | None, engines: Sequence[int], firsts: NDArray[np.int64]
    ) -> None:
        self.interval_s = interval_s
        self.engines, self.firsts = engines, firsts
        self.read: list[Floats] = [np.zeros((len(engines), 2))]

    @property
    def due_s(self) -> float:
        """End of the interval under way."""
        return inf if self.interval_s is None else len(self.read) * self.interval_s

    def update(self, s: State) -> None:
        """Note the busy time so far."""
        self.read.append(self._busy_s(s))

    def finish(self, s: State) -> Floats:
        """Return the busy time in each interval, the last one included."""
        self.update(s)
        return np.diff(np.stack(self.read), axis=0)

    def _busy_s(self, s: State) -> Floats:
        return np.array(
            [
                [
                    s.engines[name][first : first + count].sum()
                    for name in ("busy_s", "prefill_busy_s")
                ]
                for first, count in zip(self.firsts, self.engines, strict=True)
            ]
        )
