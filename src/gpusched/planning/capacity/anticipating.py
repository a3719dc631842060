"""Scaling that starts instances for the demand of when they will be ready, and corrects itself.

The fleet wanted is the largest of three: that of the forecast's band over the next start-up time, that
of the tokens that just arrived, and what deadlines of deferred requests need. All three are scaled by
one factor that late first tokens raise and their absence lowers, so that the share of late requests
settles where the objectives allow it (online calibration of a quantile, as in adaptive conformal
inference). An instance is given up only if the forecast does not want it back within the time that
starting it again would cost.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from gpusched.planning.capacity.batch_queue import rate_for_deadlines
from gpusched.planning.capacity.plan_following import InstancePlan
from gpusched.planning.capacity.service import Service
from gpusched.sim.elastic import Decision, View

HIGHEST = 2.0


@dataclass
class Anticipating:
    """See the module. ``plan`` has short periods; its ``forecast_tps`` is the upper band."""

    plan: InstancePlan
    service: Service
    late_allowed: float = 0.02
    """Share of late requests that the objectives allow, with some reserve."""
    gain: float = 0.02
    recent: int = 5
    """Periods whose mean tokens count as the demand of now."""
    hold: int = 2
    """Plan periods to look ahead before an instance is given up."""
    batch_tokens: float = 0.0
    """Mean prompt tokens of a deferred request."""
    batch_margin_s: float = 3600.0
    alarm: float = 0.5
    """Share of late requests at which instances are added at once."""
    patience_s: float = 1800.0
    """For which an instance that lateness called for is kept."""
    floor: float = 0.9
    """Of the factor."""
    factor: float = field(default=1.0, init=False)
    _kept: int = field(default=0, init=False)
    _kept_until_s: float = field(default=-1.0, init=False)
    _arrived: deque[float] = field(default_factory=deque, init=False)

    def decide(self, view: View) -> Decision:
        """Return the fleet wanted, and which of the three asks for it."""
        self._arrived.append(view.prompt_tokens / view.period_s)
        while len(self._arrived) > self.recent:
            self._arrived.popleft()
        now_tps = float(np.mean(self._arrived)) if view.now_s > 0 else 0.0
        error = min(view.late, 10 * self.late_allowed) - self.late_allowed
        self.factor = min(max(self.factor + self.gain * error, self.floor), HIGHEST)
        period = self.plan.at(view.now_s)
        ahead = self.plan.forecast_tps[period : period + self.hold + 1]
        deadlines = rate_for_deadlines(
            view.due_s, view.now_s, self.batch_tokens, self.batch_margin_s
        )
        planned = self._needed(float(ahead[0]), deadlines)
        seen = self._needed(now_tps, deadlines)
        later = self._needed(float(ahead.max()), deadlines)
        if view.late > self.alarm and not view.starting:
            more = view.capacity + max(1, view.capacity // 8)
            self._kept, self._kept_until_s = more, view.now_s + self.patience_s
            return Decision(max(planned, seen, more), f"{view.late:.0%} of first tokens are late")
        wanted = max(planned, seen)
        if wanted < self._kept and view.now_s < self._kept_until_s:
            keep = max(self._kept, wanted)
            return Decision(keep, "nothing: keeps what late first tokens called for")
        why = "forecast" if planned >= seen else "tokens of the last minutes"
        if wanted > view.capacity:
            return Decision(wanted, f"more: {why}")
        keep = max(wanted, min(later, view.capacity))
        if keep < view.capacity:
            return Decision(keep, f"fewer: {why}")
        if keep > wanted:
            return Decision(keep, "nothing: the forecast wants them back before a start pays")
        return Decision(keep, "nothing: as many as wanted")

    def _needed(self, tokens_per_s: float, deadlines_tps: float) -> int:
        return self.service.needed(self.factor * tokens_per_s + deadlines_tps)
