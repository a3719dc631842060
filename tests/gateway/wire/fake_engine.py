"""An engine that answers as it is told, faults included."""

import asyncio
import json

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
JSON_BODY = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": 'says "usage"'}}],
     "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}}
).encode()  # fmt: skip
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def plain(body: bytes = JSON_BODY, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n"
    return head % (status, more, len(body)) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM = STREAM_HEAD + chunk(EVENT) * 3 + chunk(USAGE) + chunk(DONE) + b"0\r\n\r\n"


class FakeEngine:
    """Plays a script for each request: bytes to send, seconds to wait, or a word.

    Words: ``close`` (the connection), ``wait`` (until the client goes), ``abort`` (with a reset).
    """

    def __init__(self, *script) -> None:
        self.script = script or (plain(),)
        self.by_turn: dict[int, tuple] = {}
        """Scripts of single requests, by number from 0."""
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.closed_by_peer = 0
        self.open = 0
        self.keep = True
        self.after_answer = ""
        self.server = None
        self.tls = None

    async def __aenter__(self) -> "FakeEngine":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        scheme, host = ("https", "localhost") if self.tls else ("http", "127.0.0.1")
        self.url = f"{scheme}://{host}:{self.port}"
        return self

    async def __aexit__(self, *error) -> None:
        self.server.close()

    async def _serve(self, reader, writer) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                turn = len(self.requests)
                self.requests.append((head, await reader.readexactly(length)))
                for step in self.by_turn.get(turn, self.script):
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    elif isinstance(step, float):
                        await self._pause(step, reader)
                    elif step == "close":
                        return
                    elif step == "abort":
                        writer.transport.abort()
                        return
                    elif step == "wait":
                        await self._pause(60.0, reader)
                if self.after_answer == "close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed_by_peer += 1
        finally:
            self.open -= 1
            writer.close()

    async def _pause(self, seconds: float, reader) -> None:
        try:
            async with asyncio.timeout(seconds):
                await reader.readexactly(1)
        except TimeoutError:
            return
