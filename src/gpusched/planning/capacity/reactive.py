"""Scaling by what is seen now: thresholds on utilisation, and the rules of Kubernetes' autoscalers."""

import math
from collections import deque
from dataclasses import dataclass, field

from gpusched.sim.elastic import Decision, View

TOLERANCE = 0.1
"""The horizontal pod autoscaler leaves a fleet alone whose metric is this close to its target."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """One instance more above ``high`` utilisation, one fewer below ``low``; one change at a time.

    The reactive baseline of SageServe (arXiv 2502.14617): 70 and 30 % in the text, 50 and 25 % in the
    code.
    """

    high: float = 0.7
    low: float = 0.3

    def decide(self, view: View) -> Decision:
        """Return the fleet of now, or one instance more or fewer."""
        if view.starting or view.draining:
            return Decision(view.capacity, "waits for the change under way")
        if view.use > self.high:
            return Decision(view.capacity + 1, f"utilisation above {self.high:.0%}")
        if view.use < self.low and view.open > 1:
            return Decision(view.capacity - 1, f"utilisation below {self.low:.0%}")
        return Decision(view.capacity, "utilisation between the thresholds")


@dataclass
class PodAutoscaler:
    """As many instances as bring a metric to its target, fewer only when that has been enough for
    ``stabilise_s``: the horizontal pod autoscaler's rule.

    ``metric`` is ``use`` (as for HPA, a share of what the open instances can hold) or ``outstanding``
    (as for KEDA's queue-length triggers: requests waiting or running, for each instance).
    """

    metric: str = "use"
    target: float = 0.5
    stabilise_s: float = 300.0
    _wanted: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, view: View) -> Decision:
        """Return the fleet that the rule of the metric asks for."""
        if self.metric == "use":
            ratio = view.use / self.target
            wanted = math.ceil(view.open * ratio - 1e-9)
            if abs(ratio - 1.0) <= TOLERANCE:
                wanted = view.capacity
        else:
            wanted = math.ceil(view.outstanding / self.target - 1e-9)
        wanted = max(wanted, 1)
        self._wanted.append((view.now_s, wanted))
        while self._wanted[0][0] < view.now_s - self.stabilise_s:
            self._wanted.popleft()
        highest = max(number for _, number in self._wanted)
        if wanted > view.capacity:
            most = max(2 * view.capacity, view.capacity + 4)
            return Decision(min(wanted, most), f"{self.metric} above its target")
        if highest < view.capacity:
            return Decision(highest, f"{self.metric} below its target for {self.stabilise_s:g} s")
        if wanted < view.capacity:
            return Decision(view.capacity, "fewer would do now; waits whether that lasts")
        return Decision(view.capacity, f"{self.metric} near its target")
