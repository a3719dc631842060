"""Keeps streams open through a gateway and watches the gaps between their events.

    python benchmarks/gateway_streams.py PORT STREAMS SECONDS [KEY]

Each connection asks again as soon as its answer has ended. Prints one JSON object: answers a second,
gaps between reads in milliseconds, the share of gaps beyond twice the engine's 20 ms, failures.
"""

import asyncio
import json
import sys
import time
from array import array

import uvloop

BODY = (
    b'{"model":"m","messages":[{"role":"user","content":"Write a few words about the sea, the wind, '
    b'and the ships that sail there every summer."}],"stream":true,"max_tokens":51}'
)
LONG_S = 0.04


class Stream(asyncio.Protocol):
    def __init__(self, request: bytes, seen: "Seen") -> None:
        self.request = request
        self.seen = seen
        self.last_s = 0.0

    def connection_made(self, transport):
        self.transport = transport
        self.ask()

    def ask(self):
        self.first = True
        self.headed = False
        self.asked_s = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data):
        now = time.monotonic()
        if not self.headed:
            self.headed = True
            self.seen.failed += not data.startswith(b"HTTP/1.1 200")
        if self.first:
            if b"data:" not in data:
                return
            self.first = False
            self.seen.first.append(now - self.asked_s)
        elif self.seen.counting:
            self.seen.gaps.append(now - self.last_s)
        self.last_s = now
        if data.endswith(b"0\r\n\r\n"):
            self.seen.answers += self.seen.counting
            self.ask()

    def connection_lost(self, error):
        self.seen.failed += not self.seen.over


class Seen:
    def __init__(self) -> None:
        self.gaps = array("d")
        self.first = array("d")
        self.answers = self.failed = 0
        self.counting = self.over = False


def quantile(values, share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


async def main() -> None:
    port, streams, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    key = sys.argv[4].encode() if len(sys.argv) > 4 else b"x"
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s" % (key, len(BODY), BODY)
    )
    loop = asyncio.get_running_loop()
    seen = Seen()
    protocols = []
    for _ in range(streams):
        _, protocol = await loop.create_connection(lambda: Stream(request, seen), "127.0.0.1", port)
        protocols.append(protocol)
        # One answer's time passes until all are open, so that their ends are spread out.
        await asyncio.sleep(1.0 / streams)
    seen.counting = True
    started = time.monotonic()
    await asyncio.sleep(seconds)
    seen.counting = False
    taken_s = time.monotonic() - started
    seen.over = True
    for protocol in protocols:
        protocol.transport.abort()
    gaps = sorted(seen.gaps)
    print(
        json.dumps(
            {
                "answers_per_s": seen.answers / taken_s,
                "gap_p50_ms": quantile(gaps, 0.5) * 1e3,
                "gap_p99_ms": quantile(gaps, 0.99) * 1e3,
                "stalls": sum(gap > LONG_S for gap in gaps) / max(len(gaps), 1),
                "first_p50_ms": quantile(sorted(seen.first), 0.5) * 1e3,
                "events_per_s": len(gaps) / taken_s,
                "failed": seen.failed,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main())
