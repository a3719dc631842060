"""A gateway that also picks for a proxy: one dispatcher, two ways in."""

from typing import cast

from gpusched.domain.plan import Plan
from gpusched.gateway.picker.engines import PickingDispatcher
from gpusched.gateway.picker.picker import EitherRelay, Picker
from gpusched.gateway.picker.server import PickerServer
from gpusched.gateway.server import Build, Gateway


class PickingGateway(Gateway):
    """Serves HTTP on its own port, status and metrics among it, and Envoy on another."""

    def __init__(self, plan: Plan, build: Build, *, picker_port: int) -> None:
        super().__init__(plan, build)
        self.picker_port = picker_port
        self.picker: Picker
        self._picking: PickerServer

    async def start(self) -> None:
        """Listen on both ports.

        Raises:
            InputError: a port cannot be had.
        """
        await super().start()
        rooms = self.rooms
        dispatcher = cast(PickingDispatcher, rooms.dispatcher)
        self.picker = Picker(self.settings, rooms.access, rooms.reading, dispatcher, rooms.recorder)
        dispatcher.relay = EitherRelay(self.relay, self.picker)
        self._picking = PickerServer(
            self.picker, self.settings.host, self.picker_port, self.settings.tls
        )
        try:
            await self._picking.start()
        except BaseException:
            await super().close()
            raise
        self.picker_port = self._picking.port

    def reload(self, plan: Plan) -> None:
        """Serve another plan from now on; open answers go on.

        Raises:
            InputError: the plan cannot be served; the old one stays.
        """
        super().reload(plan)
        self.picker.settings = self.settings

    async def drain(self) -> int:
        """Take no more requests, let open answers end; return how many were cut off."""
        await self._picking.close(self.settings.drain_s)
        return len(self.picker.open) + await super().drain()

    async def close(self) -> None:
        """Stop at once."""
        await self._picking.close()
        await super().close()
