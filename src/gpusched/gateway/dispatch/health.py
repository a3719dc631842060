"""Which engines are in use: failures in a row take one out, a probe that succeeds brings it back."""

import math

from gpusched.gateway.dispatch.fleet import Engine, Fleet
from gpusched.policies.routing.live import WeightedRouter

MOST_DOUBLINGS = 5
QUIET_S = 1.0
"""A connection that closes without an answer counts if no answer began for so long: engines close
idle connections, and a request may meet that."""


class Health:
    """Ejection and readmission.

    An engine whose answers are errors stays while it is the last of its lane: it can be spoken to,
    and the request may be to blame. For the same reason an error counts only against the first
    engine that a request was sent to. Metrics never decide.
    """

    def __init__(self, fleet: Fleet, eject_after: int, readmit_after_s: float) -> None:
        self.fleet = fleet
        self.configure(eject_after, readmit_after_s)
        self.ejections = 0
        self.readmissions = 0

    def configure(self, eject_after: int, readmit_after_s: float) -> None:
        """Go by other limits."""
        self.eject_after = eject_after
        self.readmit_after_s = readmit_after_s

    def succeeded(self, engine: Engine, now_s: float) -> None:
        """Take in a first byte or the end of an answer."""
        engine.failures = 0
        engine.last_sign_s = now_s
        if engine.silent:
            self.heard(engine)

    def answered(self, engine: Engine, now_s: float) -> None:
        """Take in the end of a whole answer."""
        engine.cuts = 0
        self.succeeded(engine, now_s)

    def cut(self, engine: Engine, now_s: float) -> bool:
        """Take in an answer that broke off after its first byte; return whether the engine is
        ejected. Its next first byte does not make up for it, a whole answer does."""
        engine.cuts += 1
        lane = engine.lane
        if lane is None or engine.out or engine.cuts < self.eject_after or lane.healthy == 1:
            return False
        self.eject(engine, now_s)
        return True

    def failed(self, engine: Engine, now_s: float, reason: str, first: bool) -> bool:
        """Take in a failure, of the ``first`` engine that a request was sent to or not; return
        whether the engine is ejected."""
        if reason == "busy" or engine.out or engine.lane is None:
            return False
        if reason == "closed" and now_s - engine.last_sign_s < QUIET_S:
            return False
        if reason == "status" and not first:
            return False
        engine.failures += 1
        if engine.failures < self.eject_after:
            return False
        if reason == "status" and engine.lane.healthy == 1:
            return False
        self.eject(engine, now_s)
        return True

    def eject(self, engine: Engine, now_s: float) -> None:
        """Take an engine out of use."""
        lane = engine.lane
        assert lane is not None
        if engine.out:
            return
        engine.out = True
        engine.setbacks = engine.cuts = 0
        engine.ejections += 1
        engine.next_probe_s = now_s + self.readmit_after_s
        lane.healthy -= 1
        lane.router.ready_s[engine.position] = math.inf
        self.ejections += 1

    def probed(self, engine: Engine, ok: bool, now_s: float) -> None:
        """Take in how the probe of an ejected engine ended."""
        if not engine.out:
            return
        if not ok:
            engine.setbacks += 1
            doublings = min(engine.setbacks, MOST_DOUBLINGS)
            engine.next_probe_s = now_s + self.readmit_after_s * 2.0**doublings
            return
        engine.out = False
        engine.failures = 0
        engine.next_probe_s = math.inf
        engine.back_s = now_s
        self.readmissions += 1
        lane = engine.lane
        if lane is None:
            return
        lane.healthy += 1
        lane.router.ready_s[engine.position] = -math.inf
        if len(lane.engines) > 1:
            lane.doubtful.add(engine.position)
        if isinstance(lane.router, WeightedRouter):
            lane.router.rejoin(engine.position)
        self.fleet.on_return(engine, now_s)

    def doubt(self, engine: Engine) -> None:
        """Prefer others to an engine that is silent though work is waiting there."""
        if engine.lane is not None and not engine.silent:
            engine.silent = True
            engine.lane.doubtful.add(engine.position)

    def heard(self, engine: Engine) -> None:
        """Take in that a silent engine has spoken."""
        engine.silent = False
        if engine.lane is not None and engine.back_s == -math.inf:
            engine.lane.doubtful.discard(engine.position)
