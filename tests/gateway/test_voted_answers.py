"""Several samples a request, through a whole gateway in front of an engine with known answers."""

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sampling"))

from observed import KEY, make_plan
from prometheus_text import parse
from stub import StubModel, serving

from gpusched.domain.plan import Plan
from gpusched.gateway.rooms import LiveRooms
from gpusched.gateway.server import Gateway

ASK = [{"role": "user", "content": "What is 6 times 7?"}]
ANSWERS = StubModel({r"so \boxed{42}": 0.8, r"so \boxed{41}": 0.2})


@asynccontextmanager
async def gateway(*, slo=None, model=ANSWERS, **settings):
    """Yield a post to the gateway, the engine and the gateway."""
    async with serving({"llama-3.1-8b": model}) as engine:
        values = make_plan({"log_level": "off", "port": 0, **settings}, slo).model_dump()
        values["pools"][0]["endpoints"] = [engine.url.removesuffix("/v1")]
        running = Gateway(Plan.model_validate(values), LiveRooms)
        await running.start()
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

                async def post(body, key=None, **headers):
                    if key:
                        headers["authorization"] = f"Bearer {key}"
                    url = running.address + "/v1/chat/completions"
                    async with session.post(url, json=body, headers=headers, ssl=False) as answer:
                        return answer.status, json.loads(await answer.read()), answer.headers

                yield post, engine, running
        finally:
            await running.close()


def asked(strategy="best-of-n", **more):
    fields = more.pop("gpusched", {})
    return {
        "model": "llama-3.1-8b", "messages": ASK, "gpusched": {"strategy": strategy, **fields}, **more,
    }  # fmt: skip


def run(body, **settings):
    async def go():
        async with gateway(**settings) as (post, engine, running):
            status, document, _ = await post(body)
            return status, document, engine, running.rooms.recorder.metrics_text()

    return asyncio.run(go())


def samples(text, name, **labels):
    return sum(
        s.value for f in parse(text) for s in f.samples
        if s.name == name and labels.items() <= s.labels.items()
    )  # fmt: skip


def test_a_vote_by_the_gateways_own_engines():
    status, document, engine, text = run(asked(temperature=0.7, rule="kept", seed=3))
    assert status == 200
    assert document["object"] == "chat.completion"
    assert document["model"] == "llama-3.1-8b"
    assert document["id"].startswith("chatcmpl-")
    assert document["choices"][0]["message"]["content"] == r"so \boxed{42}"
    vote = document["gpusched"]
    assert vote["answer"] == "42"
    assert sum(vote["votes"].values()) >= 4
    finished = vote["samples"]
    assert document["usage"] == {
        "prompt_tokens": 7 * finished, "completion_tokens": 10 * finished,
        "total_tokens": 17 * finished,
    }  # fmt: skip
    assert all(call["temperature"] == 0.7 and call["rule"] == "kept" for call in engine.calls)
    assert all("gpusched" not in call for call in engine.calls)
    assert {call["seed"] for call in engine.calls} == set(range(3, 3 + len(engine.calls)))
    # Samples are requests like any other; the request for several is one more, without latencies.
    assert samples(text, "gpusched_requests_total", outcome="ok") == finished + 1
    assert samples(text, "gpusched_e2e_request_latency_seconds_count") == finished
    assert samples(text, "gpusched_output_tokens_total") == 10 * finished


def test_safe_mixing():
    status, document, _, _ = run(asked("safe-mixing", gpusched={"candidates": 2, "probe_votes": 1}))
    assert status == 200
    assert document["gpusched"]["strategy"] == "safe-mixing"
    assert document["usage"]["completion_tokens"] > 20


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (asked(stream=True), "comes whole; leave out stream"),
        (asked(n=2), "leave out n"),
        (asked("best-of-m"), "unknown strategy 'best-of-m'; did you mean best-of-n?"),
        (asked(gpusched={"confidence": 2}), "gpusched: confidence: must be less than 1"),
        ({**asked(), "gpusched": 3}, "expected an object with strategy"),
        (asked(seed="x"), "seed: expected a whole number"),
        ({**asked(), "messages": []}, "messages"),
        ({**asked(), "messages": ["hi"]}, "messages"),
    ],
)
def test_wrong_requests_get_one_clear_message(body, said):
    status, document, engine, _ = run(body)
    assert status == 400
    assert said in document["error"]["message"]
    assert engine.calls == []


def test_a_request_that_only_speaks_of_it_is_relayed():
    body = {
        "model": "llama-3.1-8b",
        "messages": [{"role": "user", "content": 'what is "gpusched"?'}],
    }
    status, document, engine, _ = run(body)
    assert status == 200
    assert "gpusched" not in document
    assert len(engine.calls) == 1
    status, document, engine, _ = run({**body, "gpusched": None})
    assert status == 200
    assert len(engine.calls) == 1


def test_samples_carry_the_clients_key_and_count_against_its_limit():
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys = [{"name": "a", "sha256": digest, "requests_per_minute": 3}]

    async def go():
        async with gateway(keys=keys) as (post, engine, _):
            body = asked(gpusched={"rule": "fixed", "max_samples": 2})
            first = await post(body, KEY)
            second = await post(body, KEY)
            nobody = await post(body)
            return first, second, nobody, len(engine.calls)

    first, second, nobody, calls = asyncio.run(go())
    assert first[0] == 200
    assert first[1]["gpusched"]["samples"] == 2
    assert calls == 2
    assert second[0] == 429
    assert second[1]["error"]["code"] == "rate_limit_exceeded"
    assert nobody[0] == 401


def test_failures_of_all_samples_are_passed_on():
    broken = StubModel({"x": 1.0}, fail=lambda call: True)
    status, document, _, _ = run(asked(gpusched={"max_samples": 3}), model=broken)
    assert status >= 500
    assert document["error"]["message"]
    assert document["error"]["type"]


def test_a_client_that_goes_stops_the_samples():
    slow = StubModel({r"\boxed{1}": 1.0}, latency_s=30.0)

    async def go():
        async with gateway(model=slow) as (post, engine, running):
            body = asked(gpusched={"rule": "fixed", "max_samples": 4})
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(post(body), 1.0)
            for _ in range(100):
                if engine.running == 0 and engine.calls:
                    break
                await asyncio.sleep(0.05)
            return engine, len(running.relay.open)

    engine, still_open = asyncio.run(go())
    assert len(engine.calls) >= 2
    assert (engine.running, engine.aborted, still_open) == (0, len(engine.calls), 0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_behind_a_certificate_that_does_not_name_the_address(tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=elsewhere.example", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    status, document, _, _ = run(asked(), tls={"certificate": str(certificate), "key": str(key)})
    assert status == 200
    assert document["gpusched"]["answer"] == "42"
