"""A gateway's deciding parts, put together from a plan."""

from dataclasses import dataclass

from gpusched.domain.gateway import GatewaySettings
from gpusched.domain.plan import Plan
from gpusched.gateway.dispatch.deadlines import CallAt
from gpusched.gateway.dispatch.dispatcher import LiveDispatcher
from gpusched.gateway.dispatch.fleet import Fleet
from gpusched.gateway.dispatch.health import Health
from gpusched.gateway.dispatch.lanes import groups_of
from gpusched.gateway.dispatch.limits import Limits
from gpusched.gateway.dispatch.models import Models
from gpusched.gateway.dispatch.planned_admission import admission_for
from gpusched.gateway.dispatch.watch import Watch
from gpusched.gateway.reading.reading import RequestReading


@dataclass(frozen=True, slots=True)
class Rooms:
    """Reading, dispatcher and watch of one gateway."""

    reading: RequestReading
    dispatcher: LiveDispatcher
    watch: Watch

    def reload(self, plan: Plan, now_s: float) -> None:
        """Go on by another plan: engines that stay keep their counters, those that are gone get
        nothing more.

        Raises:
            InputError: the plan cannot be served; nothing has changed then.
        """
        settings = plan.gateway or GatewaySettings()
        dispatcher = self.dispatcher
        admission_of = admission_for(plan, dispatcher.call_at)
        groups = groups_of(plan, dispatcher.fleet, dispatcher.seed)
        self.reading.configure(settings, plan.slo.names)
        dispatcher.health.configure(settings.eject_after, settings.readmit_after_s)
        dispatcher.reload(groups, Limits.of(settings), admission_of, now_s)
        self.watch.configure(settings)


def assemble(plan: Plan, call_at: CallAt, *, seed: int = 0) -> Rooms:
    """Return the parts of a gateway that serves a plan.

    ``call_at(when_s, function, *arguments)`` is the event loop's, or a test's.

    Raises:
        InputError: the plan cannot be served.
    """
    settings = plan.gateway or GatewaySettings()
    fleet, models = Fleet(), Models()
    fleet.groups = groups_of(plan, fleet, seed)
    models.learn(fleet.groups)
    health = Health(fleet, settings.eject_after, settings.readmit_after_s)
    reading = RequestReading(settings, plan.slo.names, models)
    dispatcher = LiveDispatcher(
        fleet, models, health, Limits.of(settings), admission_for(plan, call_at), call_at, seed
    )
    return Rooms(reading, dispatcher, Watch(dispatcher, settings))
