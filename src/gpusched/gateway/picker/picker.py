"""The picker among the gateway's rooms: its conversations, and the dispatcher's way to them."""

import time

from gpusched.domain.gateway import GatewaySettings
from gpusched.gateway.exchange import (
    NOWHERE,
    Access,
    Exchange,
    Reading,
    Recorder,
    Refusal,
    Relay,
)
from gpusched.gateway.picker.addresses import Addresses
from gpusched.gateway.picker.conversation import Conversation
from gpusched.gateway.picker.engines import PickingDispatcher


class Picker:
    """Decides for a proxy; also the relay of the exchanges that the proxy carries."""

    def __init__(
        self,
        settings: GatewaySettings,
        access: Access,
        reading: Reading,
        dispatcher: PickingDispatcher,
        recorder: Recorder,
    ) -> None:
        self.settings = settings
        self.access = access
        self.reading = reading
        self.dispatcher = dispatcher
        self.recorder = recorder
        self.addresses = Addresses()
        self.open: set[Conversation] = set()
        self._number = 0

    def number(self) -> int:
        """Return the next exchange's number."""
        self._number += 1
        return self._number

    def opened(self, conversation: Conversation, now_s: float) -> None:
        """Take in a request that has been read."""
        assert conversation.exchange is not None
        self.open.add(conversation)
        self.recorder.opened(conversation.exchange, now_s)

    def ended(self, conversation: Conversation, submitted: bool, now_s: float) -> None:
        """Take in that an exchange is over."""
        exchange = conversation.exchange
        assert exchange is not None
        self.open.discard(conversation)
        if submitted:
            self.dispatcher.ended(exchange, now_s)
            if exchange.outcome == "ok":
                self.reading.learn(exchange)
        self.recorder.ended(exchange, now_s)

    # The dispatcher's relay.

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        """Tell the proxy where an exchange goes."""
        _conversation(exchange).go(engine, prefill, time.monotonic())

    def hedge(self, exchange: Exchange, engine: int) -> None:
        """Do without: a proxy asks one endpoint."""
        self.dispatcher.left(exchange, engine, time.monotonic())

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Have the proxy refuse an exchange."""
        _conversation(exchange).refuse(refusal, time.monotonic())


class EitherRelay:
    """For a gateway that carries requests itself and picks for a proxy: to each its own."""

    def __init__(self, own: Relay, picker: Picker) -> None:
        self.own = own
        self.picker = picker

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        """Send an exchange to an engine."""
        self._of(exchange).send(exchange, engine, prefill)

    def hedge(self, exchange: Exchange, engine: int) -> None:
        """Ask a second engine as well."""
        self._of(exchange).hedge(exchange, engine)

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer an exchange that no engine has begun to answer."""
        self._of(exchange).refuse(exchange, refusal)

    def _of(self, exchange: Exchange) -> Relay:
        return self.picker if isinstance(exchange.carrier, Conversation) else self.own


def _conversation(exchange: Exchange) -> Conversation:
    carrier = exchange.carrier
    assert isinstance(carrier, Conversation)
    return carrier
