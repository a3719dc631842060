"""Connections to one engine, kept alive between requests."""

import asyncio
import ssl
from urllib.parse import urlsplit

from gpusched.gateway.wire.engine import EngineConnection, Leg

MAX_IDLE = 512
"""Connections kept though nothing is sent over them."""


class Pool:
    """Opens connections to one engine and lends idle ones, the latest used first."""

    def __init__(
        self, index: int, url: str, api_key: bytes | None, connect_timeout_s: float
    ) -> None:
        self.index = index
        self.connect_timeout_s = connect_timeout_s
        parts = urlsplit(url)
        self.host_name = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.host = parts.netloc.encode()
        """As requests name it."""
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.authorization = None if api_key is None else b"Bearer " + api_key
        self._idle: list[EngineConnection] = []

    def start(self, leg: Leg) -> None:
        """Send a leg over an idle connection, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                connection.carry(leg, leg.passage.tapped or leg.prefill)
                return
        self.connect(leg)

    def connect(self, leg: Leg) -> None:
        """Send a leg over a new connection."""
        leg.task = asyncio.get_running_loop().create_task(self._connect(leg))

    async def _connect(self, leg: Leg) -> None:
        loop = asyncio.get_running_loop()
        connection = EngineConnection(self)
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                await loop.create_connection(
                    lambda: connection,
                    self.host_name,
                    self.port,
                    ssl=self.tls,
                    server_hostname=self.host_name if self.tls else None,
                )
        except asyncio.CancelledError:
            connection.drop()
            raise
        except (OSError, TimeoutError, UnicodeError) as error:
            leg.task = None
            leg.passage.lost(leg, "connect", str(error) or "no answer in time")
            return
        leg.task = None
        connection.carry(leg, leg.passage.tapped or leg.prefill)

    def give_back(self, connection: EngineConnection) -> None:
        """Keep a connection whose answer has ended."""
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.transport.close()

    def forget(self, connection: EngineConnection) -> None:
        """Take in that an idle connection has closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.transport.close()
