"""An engine that answers at once, for measuring what stands before it.

    python benchmarks/gateway_backend.py PORT [PORT ...]

POST with ``"stream": true`` in the body gives 51 server-sent events: all at once, or, where the
body has ``"max_tokens": 50``, 20 ms apart. Anything else gets one JSON answer of about 300 bytes.
"""

import asyncio
import sys

import httptools
import uvloop

EVENTS = 50
GAP_S = 0.02
USAGE = b'"usage":{"prompt_tokens":12,"completion_tokens":50,"total_tokens":62}'
PLAIN = (
    b'{"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"text":" answer of a few words, long enough to look like one",'
    b'"logprobs":null,"finish_reason":"length"}],' + USAGE + b"}"
)
PLAIN_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    % (len(PLAIN), PLAIN)
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
MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'


class Engine(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.url = b""

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
            if self.url.startswith(b"/v1/models"):
                head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                self.transport.write(head % len(MODELS) + MODELS)
            elif self.url.startswith(b"/health"):
                self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            else:
                self.transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif b'"stream":true' not in body and b'"stream": true' not in body:
            self.transport.write(PLAIN_ANSWER)
        elif b'"max_tokens": 50' in body:
            self.transport.write(STREAM_HEAD)
            self.pace(0, self.loop.time() + GAP_S)
        else:
            self.transport.write(STREAM_HEAD + CHUNK * EVENTS + END)

    def pace(self, index, when):
        if self.transport.is_closing():
            return
        self.transport.write(CHUNK if index < EVENTS else END)
        if index < EVENTS:
            self.loop.call_at(when + GAP_S, self.pace, index + 1, when + GAP_S)


async def main() -> None:
    loop = asyncio.get_running_loop()
    for port in sys.argv[1:]:
        await loop.create_server(lambda: Engine(loop), "127.0.0.1", int(port), backlog=4096)
    print("ready", flush=True)
    await asyncio.Event().wait()


uvloop.run(main())
