"""A gateway's life: start, reload, drain, stop."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gpusched.domain.gateway import GatewaySettings
from gpusched.domain.plan import Plan
from gpusched.errors import GpuschedError, InputError
from gpusched.gateway.exchange import Access, Dispatcher, Reading, Recorder
from gpusched.gateway.wire.client import ClientConnection
from gpusched.gateway.wire.front import Front, Pages
from gpusched.gateway.wire.relay import WireRelay

BACKLOG = 4096
WATCH_S = 1.0
"""Between two looks at the plan's file."""
GC_THRESHOLDS = (20_000, 50, 100)
"""Exchanges leave no circles behind, so that looking for some can be rare."""
SWEEPS = 8
"""Looks at a deadline within its time."""


class Rooms(Protocol):
    """What the wire serves: built from a plan, told of a new one."""

    @property
    def access(self) -> Access:
        """Who may ask."""
        ...

    @property
    def reading(self) -> Reading:
        """What is asked for."""
        ...

    @property
    def dispatcher(self) -> Dispatcher:
        """Who answers."""
        ...

    @property
    def recorder(self) -> Recorder:
        """What is seen."""
        ...

    @property
    def pages(self) -> Pages:
        """Pages of the gateway's own."""
        ...

    def connect(self, front: Front, address: str) -> None:
        """Take the relay, and give routes and answers of the gateway's own."""
        ...

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch engines and to keep time."""
        ...

    def reload(self, plan: Plan) -> None:
        """Take a new plan, or none of it.

        Raises:
            InputError: the plan cannot be served.
        """
        ...

    async def close(self) -> None:
        """Stop, and write what waits to be written."""
        ...


Build = Callable[[Plan, asyncio.AbstractEventLoop], Rooms]


class Gateway:
    """One gateway on one port."""

    def __init__(self, plan: Plan, build: Build, *, reuse_port: bool = False) -> None:
        assert plan.gateway is not None
        self.plan = plan
        self.settings: GatewaySettings = plan.gateway
        self.reuse_port = reuse_port
        self._build = build
        self.rooms: Rooms
        self.front: Front
        self.relay: WireRelay
        self.port = 0
        self._server: Any = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """Scheme, host and port."""
        scheme = "http" if self.settings.tls is None else "https"
        host = self.settings.host
        if host in ("", "0.0.0.0", "::"):
            host = "127.0.0.1"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def start(self) -> None:
        """Listen, and serve from now on.

        Raises:
            InputError: the port is taken, the host is not this machine's, a TLS file is wrong.
        """
        loop = asyncio.get_running_loop()
        tls = tls_context(self.settings)
        listening = listen(self.settings.host, self.settings.port, self.reuse_port)
        try:
            self.rooms = rooms = self._build(self.plan, loop)
        except BaseException:
            listening.close()
            raise
        self.port = listening.getsockname()[1]
        self.relay = WireRelay(self.settings)
        self.relay.dispatcher = rooms.dispatcher
        self.relay.reading = rooms.reading
        self.relay.recorder = rooms.recorder
        self.front = Front(self.relay, rooms.access, rooms.pages)
        rooms.connect(self.front, self.address)
        rooms.start(loop)
        self._server = await loop.create_server(
            lambda: ClientConnection(self.front), sock=listening, ssl=tls, backlog=BACKLOG
        )
        self._sweep()

    def reload(self, plan: Plan) -> None:
        """Serve another plan from now on; open answers go on.

        Raises:
            InputError: the plan cannot be served; the old one stays.
        """
        assert plan.gateway is not None
        self.rooms.reload(plan)
        self.plan = plan
        self.settings = plan.gateway
        self.relay.update(plan.gateway)

    async def drain(self) -> int:
        """Take no more requests, let open answers end; return how many were cut off."""
        self._server.close()
        self.front.draining = True
        for connection in tuple(self.front.connections):
            connection.drain()
        until_s = time.monotonic() + self.settings.drain_s
        while self.front.connections and time.monotonic() < until_s:
            await asyncio.sleep(0.02)
        cut_off = len(self.relay.open)
        for connection in tuple(self.front.connections):
            connection.transport.abort()
        return cut_off

    async def close(self) -> None:
        """Stop at once."""
        if self._timer is not None:
            self._timer.cancel()
        self._server.close()
        for connection in tuple(self.front.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        self.relay.close()
        await self.rooms.close()

    def _sweep(self) -> None:
        now = time.monotonic()
        self.relay.sweep(now)
        self.front.sweep(now)
        settings = self.settings
        shortest = min(
            settings.read_timeout_s, settings.first_byte_timeout_s, settings.stall_timeout_s, 8.0
        )
        self._timer = asyncio.get_running_loop().call_later(shortest / SWEEPS, self._sweep)


def listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    """Return a listening socket.

    Raises:
        InputError: the port is taken or not allowed, or the host is not this machine's.
    """
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError):
        raise InputError(f"gateway.host: cannot find {host!r}; try 127.0.0.1 or 0.0.0.0") from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        reasons = {
            errno.EADDRINUSE: "is in use; stop what listens there or choose another with --port",
            errno.EACCES: "is not allowed to this user; choose one above 1023",
            errno.EADDRNOTAVAIL: "cannot be had: the host is not an address of this machine",
        }
        reason = reasons.get(error.errno or 0, f"cannot be had ({error.strerror})")
        raise InputError(f"port {port} on {host} {reason}") from None
    listening.setblocking(False)
    return listening


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """Return the server's side of TLS, if the settings name a certificate.

    Raises:
        InputError: the files cannot be read, or do not belong together.
    """
    if settings.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for path in (settings.tls.certificate, settings.tls.key):
        if not os.access(path, os.R_OK):
            raise InputError(f"gateway.tls: cannot read {path}")
    try:
        # An empty password makes an encrypted key an error, not a question on the terminal.
        context.load_cert_chain(settings.tls.certificate, settings.tls.key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InputError(
            f"gateway.tls: {settings.tls.certificate} and {settings.tls.key} are not a PEM certificate "
            f"chain and its unencrypted key ({error})"
        ) from None
    return context


class Serving:
    """Runs a gateway until a signal ends it, and reloads its plan when the file changes."""

    def __init__(
        self,
        gateway: Gateway,
        read: Callable[[], Plan],
        path: Path | None,
        say: Callable[..., None],
    ) -> None:
        self.gateway = gateway
        self._read = read
        self._path = path
        self._say = say
        self._stopped = asyncio.Event()
        self._stamp = _stamp(path)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second signal does not wait for open answers."""
        gateway = self.gateway
        await gateway.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        watching = loop.create_task(self._watch())
        try:
            self._say("ready", address=gateway.address)
            await self._stopped.wait()
            self._say("draining", open=len(gateway.relay.open))
            self._stopped.clear()
            drained = loop.create_task(gateway.drain())
            again = loop.create_task(self._stopped.wait())
            await asyncio.wait((drained, again), return_when=asyncio.FIRST_COMPLETED)
            cut_off = drained.result() if drained.done() else len(gateway.relay.open)
            self._say("stopped", cut_off=cut_off)
            for task in (drained, again):
                task.cancel()
        finally:
            watching.cancel()
            await gateway.close()

    def _stop(self) -> None:
        self._stopped.set()

    def _reload(self) -> None:
        try:
            plan = self._read()
            self.gateway.reload(plan)
        except GpuschedError as error:
            self._say("not reloaded", reason=str(error))
            return
        self._say("reloaded", summary=plan.summary)

    async def _watch(self) -> None:
        while self._path is not None:
            await asyncio.sleep(WATCH_S)
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                if stamp is not None:
                    self._reload()


def _stamp(path: Path | None) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        if path is not None:
            found = path.stat()
            return found.st_mtime_ns, found.st_size
    return None


def run(serving: Callable[[], "Serving"]) -> None:
    """Run to the end on uvloop."""
    import uvloop

    async def main() -> None:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await serving().run()

    uvloop.run(main())
