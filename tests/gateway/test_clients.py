"""The official openai client and curl, against a whole gateway in front of two simulated engines."""

import asyncio
import hashlib
import json
import shutil
import subprocess
from contextlib import asynccontextmanager

import pytest
from observed import KEY, make_plan
from prometheus_text import parse

from gpusched.domain.plan import Plan
from gpusched.engines.simulated import affine_timing
from gpusched.engines.simulated.iterations import IterationEngine
from gpusched.engines.simulated.server import SimulatedEngine
from gpusched.gateway.rooms import LiveRooms
from gpusched.gateway.server import Gateway

openai = pytest.importorskip("openai")
ASK = [{"role": "user", "content": "count to eight, please"}]


@asynccontextmanager
async def gateway(**settings):
    async with (
        SimulatedEngine(IterationEngine(affine_timing(0.002, 1e-6))) as a,
        SimulatedEngine(IterationEngine(affine_timing(0.002, 1e-6))) as b,
    ):
        values = make_plan({"log_level": "off", "port": 0, **settings}).model_dump()
        values["pools"][0]["endpoints"] = [a.url, b.url]
        running = Gateway(Plan.model_validate(values), LiveRooms)
        await running.start()
        await asyncio.sleep(0.3)
        try:
            yield running
        finally:
            await running.close()


def client(running, key="unused"):
    return openai.AsyncOpenAI(base_url=running.address + "/v1", api_key=key, max_retries=0)


def test_openai_plain_streamed_listed_and_counted():
    async def go():
        async with gateway() as running, client(running) as api:
            models = [model.id async for model in await api.models.list()]
            plain = await api.chat.completions.create(model="tiny", messages=ASK, max_tokens=8)
            legacy = await api.completions.create(model="tiny", prompt="once", max_tokens=4)
            chunks = [
                chunk
                async for chunk in await api.chat.completions.create(
                    model="tiny", messages=ASK, max_tokens=8, stream=True,
                    stream_options={"include_usage": True},
                    extra_headers={"x-slo-class": "batch"}, extra_body={"ignore_eos": True},
                )
            ]  # fmt: skip
            text = running.rooms.recorder.metrics_text()
            return models, plain, legacy, chunks, text

    models, plain, legacy, chunks, text = asyncio.run(go())
    assert "tiny" in models
    assert plain.usage.completion_tokens == 8
    assert plain.choices[0].finish_reason == "length"
    assert legacy.usage.completion_tokens == 4
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8
    counted = {
        (s.name, s.labels.get("slo_class"), s.labels.get("outcome")): s.value
        for f in parse(text) for s in f.samples if s.labels.get("model") == "tiny"
    }  # fmt: skip
    assert counted["gpusched_requests_total", "chat", "ok"] == 2
    assert counted["gpusched_requests_total", "batch", "ok"] == 1
    assert counted["gpusched_output_tokens_total", "batch", None] == 8
    assert counted["gpusched_time_to_first_token_seconds_count", "batch", None] == 1


def test_openai_sees_its_own_kinds_of_errors():
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = [{"name": "a", "sha256": digest, "requests_per_minute": 1}]

    async def go():
        async with gateway(keys=keys) as running:
            async with client(running, "wrong") as api:
                with pytest.raises(openai.AuthenticationError) as wrong:
                    await api.chat.completions.create(model="tiny", messages=ASK)
            async with client(running, KEY) as api:
                await api.chat.completions.create(model="tiny", messages=ASK, max_tokens=2)
                with pytest.raises(openai.RateLimitError) as limited:
                    await api.chat.completions.create(model="tiny", messages=ASK)
            return wrong.value, limited.value

    wrong, limited = asyncio.run(go())
    assert wrong.code == "invalid_api_key"
    assert limited.code == "rate_limit_exceeded"
    assert 1 <= int(limited.response.headers["retry-after"]) <= 60
    assert limited.response.headers["x-ratelimit-limit-requests"] == "1"


def test_openai_asks_for_several_samples():
    async def go():
        async with gateway() as running, client(running) as api:
            return await api.chat.completions.create(
                model="tiny", messages=ASK, max_tokens=8,
                extra_body={"gpusched": {
                    "strategy": "best-of-n", "rule": "fixed", "max_samples": 4,
                    "answer": {"kind": "regex", "pattern": r"(\d+)\s*$"},
                }},
            )  # fmt: skip

    answer = asyncio.run(go())
    assert answer.gpusched["votes"] == {"7": answer.gpusched["samples"]}
    assert answer.usage.completion_tokens == 8 * answer.gpusched["samples"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl():
    def ask(*arguments):
        done = subprocess.run(
            ["curl", "-sS", "-N", "--max-time", "20", *arguments], capture_output=True, check=True
        )
        return done.stdout

    async def go():
        async with gateway() as running:
            url = running.address
            body = json.dumps({"model": "tiny", "messages": ASK, "max_tokens": 3, "stream": True})
            stream = await asyncio.to_thread(ask, url + "/v1/chat/completions", "-d", body)
            whole = await asyncio.to_thread(
                ask,
                url + "/v1/completions",
                "--json",
                '{"model":"tiny","prompt":"a","max_tokens":3}',
            )
            pages = [
                await asyncio.to_thread(ask, url + path)
                for path in ("/", "/metrics", "/status.json", "/health")
            ]
            return stream, whole, pages

    stream, whole, pages = asyncio.run(go())
    assert stream.rstrip().endswith(b"data: [DONE]")
    assert json.loads(whole)["usage"]["completion_tokens"] == 3
    assert pages[0].startswith(b"<!doctype html>")
    parse(pages[1].decode())
    status = json.loads(pages[2])
    assert [engine["up"] for engine in status["engines"]] == [True, True]
    assert json.loads(pages[3])["status"] == "ok"
