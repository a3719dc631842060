"""Requests with a deadline in hours: let in where there is room, and in time in any case."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.elastic import View

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BySignal:
    """SageServe's rule (arXiv 2502.14617): below 60 % utilisation one request a look, below 50 % two,
    here for every open instance; all that are due within ``promote_s``."""

    promote_s: float = 3600.0
    levels: tuple[float, float] = (0.6, 0.5)

    def release(self, view: View) -> int:
        """Return how many to let in."""
        urgent = int(np.searchsorted(view.due_s, view.now_s + self.promote_s))
        each = int(view.use < self.levels[0]) + int(view.use < self.levels[1])
        return min(max(urgent, each * view.open), len(view.due_s))


@dataclass(frozen=True, slots=True)
class IntoValleys:
    """As many as fill what interactive traffic leaves of the open instances' capacity, and those due
    within ``promote_s``.

    ``service_tps`` and ``tokens`` are prompt tokens: what one instance serves a second, and the mean
    of a deferred request. Nothing is added to a queue that exists.
    """

    service_tps: float
    tokens: float
    promote_s: float = 1800.0
    fill: float = 0.95

    def release(self, view: View) -> int:
        """Return how many to let in."""
        urgent = int(np.searchsorted(view.due_s, view.now_s + self.promote_s))
        spare = self.fill * self.service_tps * view.open * view.period_s - view.prompt_tokens
        room = int(spare / self.tokens) if view.use < self.fill and not view.waiting else 0
        return min(max(urgent, room, 0), len(view.due_s))


def rate_for_deadlines(due_s: Floats, now_s: float, tokens: float, margin_s: float) -> float:
    """Return the tokens a second that answer waiting requests in time, first due first: the largest,
    over deadlines, of the work due by then over the time left (the demand bound of EDF).

    ``margin_s`` is kept before each deadline. Shapes: ``due_s`` (requests,), ascending.
    """
    if not len(due_s):
        return 0.0
    step = max(len(due_s) // 256, 1)
    last = np.arange(step - 1, len(due_s), step)
    left_s = np.maximum(due_s[last] - margin_s - now_s, 60.0)
    return float(((last + 1) * tokens / left_s).max())
