"""An engine that costs next to nothing, for measuring what stands before it.

    python benchmarks/gateway_backend.py PORT [PORT ...]

POST with ``"stream": true`` in the body gives 51 server-sent events 20 ms apart, or all at once where
the body has ``"burst"``. Anything else gets one JSON answer of about 300 bytes.
"""

import asyncio
import sys

import httptools
import uvloop

EVENTS = 50
GAP_S = 0.02
SLOTS = 20
"""Streams are written in as many groups, 1 ms apart, so that pacing costs little."""
USAGE = b'"usage":{"prompt_tokens":12,"completion_tokens":50,"total_tokens":62}'
PLAIN = (
    b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":" answer of a few words"},'
    b'"finish_reason":"length"}],' + USAGE + b"}"
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
EVENT = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"m","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
LAST = b"data: {" + USAGE + b"}\n\ndata: [DONE]\n\n"
END = b"%x\r\n%s\r\n0\r\n\r\n" % (len(LAST), LAST)


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


PLAIN_ANSWER = answer(PLAIN)
PAGES = {
    b"/v1/models": answer(b'{"object":"list","data":[{"id":"m","object":"model"}]}'),
    b"/health": answer(b""),
}
MISSING = answer(b"", b"404 Not Found")


class Pacer:
    """Writes one event to every open stream each ``GAP_S``."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.slots: list[dict] = [{} for _ in range(SLOTS)]
        self.turn = 0
        self.when = loop.time()
        self.tick()

    def add(self, transport) -> None:
        """Open a stream; its next turn is one gap from now."""
        self.slots[(self.turn - 1) % SLOTS][transport] = 0

    def tick(self) -> None:
        slot = self.slots[self.turn]
        over = []
        for transport, sent in slot.items():
            if transport.is_closing():
                over.append(transport)
                continue
            transport.write(CHUNK if sent < EVENTS else END)
            slot[transport] = sent + 1
            if sent == EVENTS:
                over.append(transport)
        for transport in over:
            del slot[transport]
        self.turn = (self.turn + 1) % SLOTS
        self.when += GAP_S / SLOTS
        self.loop.call_at(self.when, self.tick)


class Engine(asyncio.Protocol):
    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.parser = httptools.HttpRequestParser(self)
        self.body = self.url = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_url(self, url):
        self.url = url

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        body, self.body = self.body, b""
        if self.parser.get_method() == b"GET":
            self.transport.write(PAGES.get(self.url, MISSING))
        elif b'"stream":true' not in body and b'"stream": true' not in body:
            self.transport.write(PLAIN_ANSWER)
        elif b'"burst"' in body:
            self.transport.write(STREAM_HEAD + CHUNK * EVENTS + END)
        else:
            self.transport.write(STREAM_HEAD)
            self.pacer.add(self.transport)


async def main() -> None:
    loop = asyncio.get_running_loop()
    pacer = Pacer(loop)
    for port in sys.argv[1:]:
        await loop.create_server(lambda: Engine(pacer), "127.0.0.1", int(port), backlog=4096)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
