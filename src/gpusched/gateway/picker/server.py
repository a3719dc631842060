"""The picker's gRPC server: ``envoy.service.ext_proc.v3.ExternalProcessor`` and gRPC's health check."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from gpusched.domain.gateway import Tls
from gpusched.errors import InputError
from gpusched.gateway.picker import messages
from gpusched.gateway.picker.addresses import REFRESH_S
from gpusched.gateway.picker.conversation import Conversation, ProtocolError
from gpusched.gateway.picker.picker import Picker

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
HEALTH_SERVICES = ("", "liveness", "readiness", SERVICE)
WATCH_S = 1.0


class PickerServer:
    """Listens for Envoy."""

    def __init__(self, picker: Picker, host: str, port: int, tls: Tls | None = None) -> None:
        self.picker = picker
        self.host = host
        self.port = port
        self._tls = tls
        self._server: Any = None
        self._lookups: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            InputError: the port cannot be had, or a TLS file cannot be read.
        """
        await self.picker.addresses.refresh(e.url for e in self.picker.dispatcher.engines)
        self._lookups = asyncio.create_task(self._look_up())
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(_handlers(self))
        address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        try:
            if self._tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError:
            raise InputError(
                f"port {self.port} on {self.host} cannot be had; choose another with --port"
            ) from None
        await server.start()
        self._server = server

    async def close(self, grace_s: float = 0.0) -> None:
        """Take no more requests; let open ones end within the grace."""
        if self._lookups is not None:
            self._lookups.cancel()
        if self._server is not None:
            await self._server.stop(grace_s)

    async def process(self, requests: AsyncIterator[Any], context: Any) -> None:
        """Hold one conversation."""
        replies: asyncio.Queue[Any] = asyncio.Queue()
        conversation = Conversation(self.picker, replies.put_nowait)
        writing = asyncio.create_task(_write(replies, context))
        try:
            async for request in requests:
                conversation.take(request, time.monotonic())
            replies.put_nowait(None)
            await writing
        except ProtocolError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        finally:
            writing.cancel()
            conversation.closed(time.monotonic())

    async def check(self, request: Any, context: Any) -> Any:
        """Answer a health check."""
        if request.service not in HEALTH_SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return messages.HealthCheckResponse(status=self._status(request.service))

    async def watch(self, request: Any, context: Any) -> None:
        """Tell a health check's result whenever it changes."""
        last = -1
        while True:
            known = request.service in HEALTH_SERVICES
            status = self._status(request.service) if known else messages.SERVICE_UNKNOWN
            if status != last:
                last = status
                await context.write(messages.HealthCheckResponse(status=status))
            await asyncio.sleep(WATCH_S)

    def _status(self, service: str) -> int:
        ready = any(engine.usable for engine in self.picker.dispatcher.engines)
        return messages.SERVING if service == "liveness" or ready else messages.NOT_SERVING

    async def _look_up(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await self.picker.addresses.refresh(e.url for e in self.picker.dispatcher.engines)


async def _write(replies: "asyncio.Queue[Any]", context: Any) -> None:
    while (reply := await replies.get()) is not None:
        await context.write(reply)


def _handlers(server: PickerServer) -> tuple[Any, ...]:
    def serialize(message: Any) -> bytes:
        data: bytes = message.SerializeToString()
        return data

    process = grpc.stream_stream_rpc_method_handler(
        server.process, messages.ProcessingRequest.FromString, serialize
    )
    read = messages.HealthCheckRequest.FromString
    health = {
        "Check": grpc.unary_unary_rpc_method_handler(server.check, read, serialize),
        "Watch": grpc.unary_stream_rpc_method_handler(server.watch, read, serialize),
    }
    return (
        grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
    )


def _credentials(tls: Tls) -> Any:
    try:
        key, chain = Path(tls.key).read_bytes(), Path(tls.certificate).read_bytes()
    except OSError as error:
        raise InputError(f"gateway.tls: cannot read {error.filename}") from None
    return grpc.ssl_server_credentials([(key, chain)])
