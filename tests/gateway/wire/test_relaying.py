"""Answers pass through untouched, whatever engine and client do."""

import asyncio
import itertools
import socket

import pytest
from doubles import BODY, PATH, ask, ended, gateway_of, one_answer, post, run, until
from fake_engine import DONE, EVENT, JSON_BODY, STREAM, STREAM_HEAD, FakeEngine, chunk, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.gateway.exchange import Refusal


@pytest.mark.parametrize("answer", [plain(), STREAM], ids=["plain", "stream"])
def test_answer_and_body_are_the_same_bytes(answer):
    async def main():
        async with FakeEngine(answer) as engine:
            gateway, rooms = await gateway_of([engine.url])
            assert await ask(gateway.port, post()) == answer
            head, body = engine.requests[0]
            assert body == BODY
            assert f"host: 127.0.0.1:{engine.port}\r\n".encode() in head
            (exchange,) = await ended(rooms)
            assert exchange.outcome == "ok"
            assert exchange.status == 200
            stream = answer is STREAM
            assert exchange.output_tokens == (3 if stream else 5)
            assert exchange.prompt_tokens == (7 if stream else 11)
            assert exchange.cached_tokens == (4 if stream else 0)
            assert exchange.events == (5 if stream else 0)
            assert (
                exchange.received_s
                <= exchange.sent_s
                <= exchange.first_byte_s
                <= exchange.last_byte_s
            )
            await gateway.close()

    run(main)


@settings(max_examples=60)
@given(cuts=st.lists(st.integers(1, len(STREAM) - 1), max_size=12), stream=st.booleans())
def test_any_cutting_of_an_answer_gives_the_same_bytes(cuts, stream):
    answer = STREAM if stream else plain()
    cuts = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    parts = [answer[a:b] for a, b in itertools.pairwise(cuts)]

    async def main():
        script = [step for part in parts for step in (part, 0.002)]
        async with FakeEngine(*script) as engine:
            gateway, rooms = await gateway_of([engine.url])
            assert await ask(gateway.port, post()) == answer
            assert (await ended(rooms))[0].output_tokens == (3 if stream else 5)
            await gateway.close()

    run(main)


def test_request_is_put_together_from_any_pieces():
    async def main():
        async with FakeEngine() as engine:
            gateway, _ = await gateway_of([engine.url])
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            request = (
                b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
                b"X-Thing: kept\r\nConnection: X-Own, keep-alive\r\nX-Own: dropped\r\n\r\n"
                + chunk(BODY[:9]) + chunk(BODY[9:]) + b"0\r\n\r\n"
            )  # fmt: skip
            for i in range(len(request)):
                writer.write(request[i : i + 1])
                await asyncio.sleep(0)
            assert await one_answer(reader) == plain()
            head, body = engine.requests[0]
            assert body == BODY
            assert b"x-thing: kept" in head
            assert b"content-length: %d" % len(BODY) in head
            for gone in (b"x-own", b"transfer-encoding", b"connection"):
                assert gone not in head
            writer.close()
            await gateway.close()

    run(main)


def test_pipelined_requests_are_answered_in_turn():
    async def main():
        async with FakeEngine(0.02, plain()) as engine:
            gateway, _ = await gateway_of([engine.url])
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(
                post() + b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" + post() + b"NOT HTTP\r\n\r\n"
            )
            assert await one_answer(reader) == plain()
            assert (await one_answer(reader)).endswith(b"metrics")
            assert await one_answer(reader) == plain()
            last = await reader.read()
            assert last.startswith(b"HTTP/1.1 400 ")
            await gateway.close()

    run(main)


def test_expect_continue_head_options_and_own_pages():
    async def main():
        async with FakeEngine() as engine:
            gateway, _ = await gateway_of([engine.url])
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            head, _, body = post(more=b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
            writer.write(head + b"\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert await one_answer(reader) == plain()
            writer.write(
                b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\nOPTIONS %s HTTP/1.1\r\nHost: x\r\n\r\n"
                % PATH
            )
            assert b"content-length: 7\r\n" in await reader.readuntil(b"\r\n\r\n")
            assert b"allow: POST, OPTIONS" in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % PATH)
            assert b" 405 " in await one_answer(reader)
            writer.write(b"GET http://x/v1/models?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await one_answer(reader)).endswith(b'{"data": []}')
            writer.write(
                b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n"
            )
            assert b"invalid_api_key" in await one_answer(reader)
            assert len(engine.requests) == 1
            writer.close()
            await gateway.close()

    run(main)


def test_http_1_0_and_connection_close():
    async def main():
        async with FakeEngine(STREAM) as engine:
            gateway, _ = await gateway_of([engine.url])
            old = await ask(gateway.port, post(version=b"1.0"), until_close=True)
            head, _, body = old.partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head.lower()
            assert body == EVENT * 3 + body[len(EVENT) * 3 :]
            assert body.endswith(DONE)
            assert b"\r\n" not in body
            new = await ask(gateway.port, post(more=b"Connection: close\r\n"), until_close=True)
            assert new.count(b"connection: close") == 1
            assert new.endswith(STREAM[len(STREAM_HEAD) :])
            await gateway.close()

    run(main)


def test_engine_that_frames_by_closing():
    async def main():
        answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall there is"
        async with FakeEngine(answer, "close") as engine:
            gateway, rooms = await gateway_of([engine.url])
            got = await ask(gateway.port, post(), until_close=True)
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"connection: close" in got
            assert got.endswith(b"\r\n\r\nall there is")
            assert (await ended(rooms))[0].outcome == "ok"
            await gateway.close()

    run(main)


def test_hop_by_hop_headers_of_an_answer_stay_behind():
    async def main():
        answer = plain(
            more=b"Connection: keep-alive, X-Own\r\nKeep-Alive: timeout=5\r\nX-Own: 1\r\nX-Kept: 2\r\n"
        )
        async with FakeEngine(b"HTTP/1.1 100 Continue\r\n\r\n" + answer) as engine:
            gateway, _ = await gateway_of([engine.url])
            got = await ask(gateway.port, post())
            assert b"X-Kept: 2" in got
            for gone in (b"100 Continue", b"keep-alive", b"x-own"):
                assert gone not in got.lower()
            assert got.endswith(b"\r\n\r\n" + JSON_BODY)
            await ask(gateway.port, post())
            assert engine.connections == 1
            await gateway.close()

    run(main)


def test_load_report_is_asked_for_read_and_hidden():
    async def main():
        report = b"TEXT named_metrics.num_requests_waiting=3.0"
        async with FakeEngine(plain(more=b"Endpoint-Load-Metrics: " + report + b"\r\n")) as engine:
            gateway, rooms = await gateway_of([engine.url])
            assert await ask(gateway.port, post()) == plain()
            assert b"endpoint-load-metrics-format: TEXT" in engine.requests[0][0]
            assert ("report", 0, report) in rooms.told
            await gateway.close()

    run(main)


def test_both_sides_send_at_once(monkeypatch):
    async def main():
        async with FakeEngine(STREAM_HEAD + chunk(EVENT), "wait") as engine:
            gateway, _ = await gateway_of([engine.url])
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(post())
            await reader.readuntil(b"\n\n")
            (passage,) = gateway.relay.open
            for transport in (passage.client.transport, passage.winner.connection.transport):
                held = transport.get_extra_info("socket")
                assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            await gateway.close()

    run(main)


def test_client_that_goes_ends_the_request_at_the_engine():
    async def main():
        async with FakeEngine(STREAM_HEAD + chunk(EVENT), "wait") as engine:
            gateway, rooms = await gateway_of([engine.url])
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(post())
            await reader.readuntil(b"\n\n")
            assert engine.open == 1
            writer.close()
            await until(lambda: engine.open == 0)
            assert (await ended(rooms))[0].outcome == "cancelled"
            assert not gateway.relay.open
            await gateway.close()

    run(main)


def test_slow_client_holds_the_engine_back():
    async def main():
        size, count = 65_536, 600
        async with FakeEngine(STREAM_HEAD, *([chunk(b"x" * size)] * count), b"0\r\n\r\n") as engine:
            gateway, _ = await gateway_of([engine.url])
            held = socket.socket()
            held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            held.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(held, ("127.0.0.1", gateway.port))
            await loop.sock_sendall(held, post())
            await asyncio.sleep(0.5)
            (passage,) = gateway.relay.open
            assert passage.paused
            assert passage.client.transport.get_write_buffer_size() < 1_000_000
            # What has left the engine lies in the kernel's buffers, not with us.
            total = 0
            tail = b""
            while not tail.endswith(b"\r\n0\r\n\r\n"):
                more = await loop.sock_recv(held, 1 << 20)
                assert more
                total += len(more)
                tail = (tail + more)[-16:]
            assert total > size * count
            held.close()
            # The connection to the engine reads again when it is used again.
            engine.script = (plain(),)
            assert await ask(gateway.port, post()) == plain()
            await gateway.close()

    run(main)


def test_refusal_of_the_dispatcher():
    async def main():
        async with FakeEngine() as engine:
            gateway, rooms = await gateway_of([engine.url])
            rooms.refusal = Refusal(
                429,
                "busy",
                "overloaded_error",
                "queue_full",
                retry_after_s=1.2,
                headers=((b"x-a", b"b"),),
            )
            got = await ask(gateway.port, post())
            assert got.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
            assert b"retry-after: 2\r\n" in got
            assert b"x-a: b\r\n" in got
            assert b'"code":"queue_full"' in got
            assert (await ended(rooms))[0].outcome == "refused"
            await gateway.close()

    run(main)


def test_client_that_goes_while_held():
    async def main():
        async with FakeEngine() as engine:
            gateway, rooms = await gateway_of([engine.url])
            rooms.hold = True
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(post())
            await until(lambda: gateway.relay.open)
            writer.close()
            assert (await ended(rooms))[0].outcome == "cancelled"
            assert ("ended", 1) in rooms.told
            await gateway.close()

    run(main)
