"""Engines that drop, die, stall, refuse and babble."""

import asyncio
import json
import socket

import pytest
from doubles import ask, ended, gateway_of, one_answer, post, run, until
from fake_engine import EVENT, JSON_BODY, STREAM, STREAM_HEAD, FakeEngine, chunk, plain

ERROR = plain(b'{"error":{"message":"broken"}}', b"500 Internal Server Error")
BUSY = plain(b'{"error":{"message":"later"}}', b"429 Too Many Requests", b"Retry-After: 7\r\n")


def error_of(answer: bytes) -> dict:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def failures(rooms) -> list:
    return [told[1:] for told in rooms.told if told[0] == "failed"]


def test_dropped_kept_alive_connection_is_no_failure():
    async def main():
        async with FakeEngine() as engine:
            gateway, rooms = await gateway_of([engine.url])
            assert await ask(gateway.port, post()) == plain()
            # The next request over the same connection is met with its end.
            engine.by_turn[1] = ("abort",)
            assert await ask(gateway.port, post()) == plain()
            assert engine.connections == 2
            assert failures(rooms) == []
            await gateway.close()

    run(main)


def test_connection_that_the_engine_closes_after_each_answer():
    async def main():
        async with FakeEngine() as engine:
            engine.after_answer = "close"
            gateway, rooms = await gateway_of([engine.url])
            for _ in range(20):
                assert await ask(gateway.port, post()) == plain()
            assert failures(rooms) == []
            await gateway.close()

    run(main)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (("close",), "closed"),
        (("abort",), "closed"),
        ((STREAM_HEAD, 0.02, "close"), "closed"),
        ((b"SSH-2.0-OpenSSH_9\r\n",), "closed"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",), "closed"),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"a" * 400_000 + b"\r\n\r\n",), "closed"),
        (
            (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",),
            "closed",
        ),
        (("wait",), "timeout"),
        ((STREAM_HEAD, "wait"), "timeout"),
        ((ERROR,), "status"),
        ((BUSY,), "busy"),
        ((plain(status=b"503 Service Unavailable"),), "busy"),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_failure_before_the_first_byte_goes_elsewhere(script, reason, alone):
    async def main():
        async with FakeEngine(*script) as bad, FakeEngine() as good:
            urls = [bad.url] if alone else [good.url, bad.url]
            gateway, rooms = await gateway_of(urls, first_byte_timeout_s=0.15)
            got = await ask(gateway.port, post())
            assert failures(rooms) == [(len(urls) - 1, reason)]
            (exchange,) = await ended(rooms)
            if not alone:
                assert got == plain()
                assert exchange.outcome == "ok"
                assert exchange.engine == 0
            elif reason in ("status", "busy"):
                assert got == script[0]
                assert exchange.outcome == "failed"
            else:
                assert got.startswith(b"HTTP/1.1 504 " if reason == "timeout" else b"HTTP/1.1 502 ")
                assert error_of(got)["code"] == f"engine_{reason}"
                assert exchange.outcome == "failed"
            if not (alone and reason in ("status", "busy")):
                await until(lambda: bad.open == 0)
            assert not gateway.relay.open
            await gateway.close()

    run(main)


def test_engine_that_cannot_be_reached():
    async def main():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
            async with FakeEngine() as good:
                gateway, rooms = await gateway_of([good.url, nobody])
                assert await ask(gateway.port, post()) == plain()
                assert failures(rooms) == [(1, "connect")]
                await gateway.close()
            gateway, rooms = await gateway_of([nobody, "http://no-such-host.invalid:1"])
            error = error_of(await ask(gateway.port, post()))
            assert error["code"] == "engine_connect"
            assert sorted(failures(rooms)) == [(0, "connect"), (1, "connect")]
            await gateway.close()

    run(main)


def test_client_error_of_an_engine_is_the_answer():
    async def main():
        answer = plain(b'{"error": {}}', b"400 Bad Request")
        async with FakeEngine(answer) as engine, FakeEngine() as other:
            gateway, rooms = await gateway_of([other.url, engine.url])
            assert await ask(gateway.port, post()) == answer
            assert failures(rooms) == []
            assert (await ended(rooms))[0].outcome == "refused"
            assert not other.requests
            await gateway.close()

    run(main)


@pytest.mark.parametrize("fault", ["close", "abort", "wait", b"garbage instead of a chunk"])
def test_no_retry_after_the_first_byte(fault):
    async def main():
        async with (
            FakeEngine(STREAM_HEAD, chunk(EVENT), 0.02, fault) as engine,
            FakeEngine() as other,
        ):
            gateway, rooms = await gateway_of([other.url, engine.url], stall_timeout_s=0.15)
            got = await ask(gateway.port, post(), until_close=True)
            assert got.startswith(STREAM_HEAD + chunk(EVENT))
            assert not got.endswith(b"0\r\n\r\n")
            last = got.rpartition(b"data: ")[2].partition(b"\n")[0]
            assert json.loads(last)["error"]["code"] == (
                "stalled" if fault == "wait" else "engine_closed"
            )
            assert not other.requests
            assert failures(rooms) == []
            assert (await ended(rooms))[0].outcome == "failed"
            await until(lambda: engine.open == 0)
            await gateway.close()

    run(main)


def test_bytes_after_the_end_of_an_answer_never_reach_a_client():
    async def main():
        async with FakeEngine(
            plain() + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        ) as engine:
            gateway, _ = await gateway_of([engine.url])
            got = await ask(gateway.port, post())
            assert error_of(got)["code"] == "engine_closed"
            await gateway.close()

    run(main)


def test_slow_drip_is_no_stall():
    async def main():
        parts = [STREAM[i : i + 40] for i in range(0, len(STREAM), 40)]
        async with FakeEngine(*[step for part in parts for step in (part, 0.05)]) as engine:
            gateway, rooms = await gateway_of([engine.url], stall_timeout_s=0.4)
            assert await ask(gateway.port, post()) == STREAM
            assert (await ended(rooms))[0].outcome == "ok"
            await gateway.close()

    run(main)


def test_hedge_takes_the_first_and_cancels_the_other():
    async def main():
        async with FakeEngine("wait") as slow, FakeEngine(0.05, plain()) as fast:
            gateway, rooms = await gateway_of([fast.url, slow.url])
            rooms.hedge_to = 0
            assert await ask(gateway.port, post()) == plain()
            (exchange,) = await ended(rooms)
            assert exchange.hedged
            assert exchange.engine == 0
            assert [told for told in rooms.told if told[0] in ("began", "left")] == [
                ("left", 1),
                ("began", 0),
            ]
            await until(lambda: slow.open == 0)
            await gateway.close()

    run(main)


def test_hedge_survives_the_failure_of_one():
    async def main():
        async with FakeEngine("close") as bad, FakeEngine(0.1, plain()) as good:
            gateway, rooms = await gateway_of([good.url, bad.url])
            rooms.hedge_to = 0
            assert await ask(gateway.port, post()) == plain()
            assert failures(rooms) == [(1, "closed")]
            await gateway.close()

    run(main)


def test_prefill_elsewhere():
    async def main():
        told = {"remote_block_ids": [1, 2], "remote_host": "h"}
        first = plain(json.dumps({"choices": [], "kv_transfer_params": told}).encode())
        async with FakeEngine(STREAM) as decode, FakeEngine(first) as prefill:
            gateway, rooms = await gateway_of([decode.url, prefill.url], retries=0)
            rooms.prefill = 1
            rooms.turn = 1
            body = b'{"messages": [], "stream": true, "max_tokens": 9}'
            assert await ask(gateway.port, post(body)) == STREAM
            asked = json.loads(prefill.requests[0][1])
            assert asked["max_tokens"] == 1
            assert asked["stream"] is False
            assert asked["kv_transfer_params"]["do_remote_decode"] is True
            again = json.loads(decode.requests[0][1])
            assert again == {**json.loads(body), "kv_transfer_params": told}
            exchange = (await ended(rooms))[0]
            assert (exchange.engine, exchange.prefill_engine) == (0, 1)

            # The prefill engine's refusal is the answer; its failure is a failure.
            prefill.script = (plain(b"{}", b"400 Bad Request"),)
            rooms.turn = 1
            got = await ask(gateway.port, post(body), until_close=True)
            assert got.startswith(b"HTTP/1.1 400 Bad Request")
            prefill.script = ("close",)
            rooms.turn = 1
            assert error_of(await ask(gateway.port, post(body)))["code"] == "engine_closed"
            assert len(decode.requests) == 1
            await gateway.close()

    run(main)


def test_engine_answers_before_the_request_is_whole():
    async def main():
        answer = plain(b"{}", b"413 Payload Too Large")
        async with FakeEngine() as engine:
            gateway, _ = await gateway_of([engine.url])

            async def early(reader, writer):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
                await asyncio.sleep(0.5)
                writer.close()

            server = await asyncio.start_server(early, "127.0.0.1", 0)
            gateway.rooms.engines[0].url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            assert await ask(gateway.port, post(b"x" * 8_000_000)) == answer
            server.close()
            await gateway.close()

    run(main)


def test_many_requests_at_once_over_few_connections():
    async def main():
        async with FakeEngine(0.01, plain()) as engine:
            gateway, rooms = await gateway_of([engine.url])
            answers = await asyncio.gather(*(ask(gateway.port, post()) for _ in range(100)))
            assert set(answers) == {plain()}
            before = engine.connections
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            for _ in range(20):
                writer.write(post())
                assert await one_answer(reader) == plain()
            assert engine.connections == before
            assert JSON_BODY in answers[0]
            assert len(await ended(rooms, 120)) == 120
            writer.close()
            await gateway.close()

    run(main)
