"""Scaling by a plan that was made ahead: at once, as utilisation asks, or beyond it in a burst.

The long-term strategies of SageServe (arXiv 2502.14617, section on scaling): LT-I, LT-U and LT-UA.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.elastic import Decision, View

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EMERGENCY = 0.9
"""Utilisation at which LT-U goes beyond a plan that is used up."""


@dataclass(frozen=True)
class InstancePlan:
    """Instances wanted from each time on, and the demand that they are for."""

    start_s: Floats
    """Ascending, shape (periods,)."""
    target: Ints
    forecast_tps: Floats
    """Prompt tokens a second, forecast."""

    def at(self, now_s: float) -> int:
        """Return the period that a time is in; the first before it, the last after it."""
        return max(int(np.searchsorted(self.start_s, now_s + 1e-6, side="right")) - 1, 0)


@dataclass(frozen=True)
class Immediate:
    """LT-I: what the plan says, at once."""

    plan: InstancePlan

    def decide(self, view: View) -> Decision:
        """Return the plan's number."""
        target = int(self.plan.target[self.plan.at(view.now_s)])
        if target == view.capacity:
            return Decision(target, "as planned already")
        return Decision(target, "plan of the hour")


@dataclass
class ByUtilisation:
    """LT-U: the plan is a credit, spent one instance at a time when utilisation asks for it.

    With ``burst`` LT-UA: a credit that is used up is exceeded also when the last period brought
    ``burst`` times the tokens forecast.
    """

    plan: InstancePlan
    high: float = 0.7
    low: float = 0.3
    burst: float | None = None
    _period: int = field(default=-1, init=False)
    _credit: int = field(default=0, init=False)

    def decide(self, view: View) -> Decision:
        """Return the fleet of now, or one instance more or fewer."""
        period = self.plan.at(view.now_s)
        if period != self._period:
            self._period = period
            self._credit = int(self.plan.target[period]) - view.capacity
        if self._credit > 0 and view.use > self.high:
            self._credit -= 1
            return Decision(view.capacity + 1, f"planned, and utilisation above {self.high:.0%}")
        if self._credit < 0 and view.use < self.low:
            self._credit += 1
            return Decision(view.capacity - 1, f"planned, and utilisation below {self.low:.0%}")
        if self._credit > 0:
            return Decision(
                view.capacity, "more are planned; utilisation does not ask for them yet"
            )
        if self._credit < 0:
            return Decision(view.capacity, "fewer are planned; utilisation is not low enough yet")
        if view.starting == 0 and view.use > EMERGENCY:
            return Decision(
                view.capacity + 1, f"beyond the plan: utilisation above {EMERGENCY:.0%}"
            )
        expected = float(self.plan.forecast_tps[period]) * view.period_s
        if self.burst is not None and view.prompt_tokens > self.burst * expected:
            return Decision(
                view.capacity + 1, f"beyond the plan: {self.burst:g} times the forecast arrived"
            )
        return Decision(view.capacity, "the plan is carried out")
