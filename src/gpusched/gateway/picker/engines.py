"""What a picker asks of the dispatcher and its engines."""

from collections.abc import Sequence
from typing import Any, Protocol

from gpusched.gateway.exchange import Dispatcher, Exchange, Relay


class EngineView(Protocol):
    """What a picker asks of a live engine."""

    index: int
    url: str
    api_key: bytes | None


class PickingDispatcher(Dispatcher, Protocol):
    """A dispatcher whose engines can be seen."""

    relay: Relay

    @property
    def engines(self) -> Sequence[Any]:
        """Engines by index, each an ``EngineView``."""
        ...

    def body_for(self, exchange: Exchange, engine: int) -> bytes:
        """Return the body to send to an engine."""
        ...
