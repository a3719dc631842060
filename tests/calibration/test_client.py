"""Servers that are no engine, or bad ones."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gpusched.calibration.client import HttpEngine
from gpusched.calibration.facts import check_idle, find_facts
from gpusched.calibration.stage import Stage
from gpusched.errors import InputError

MODELS = {"data": [{"id": "m", "max_model_len": 512}]}
EVENT = b'data: {"choices":[{"index":0,"text":" a"}]}\n\n'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    models: Any = MODELS
    metrics = 'vllm:num_requests_running{engine="0"} 0.0\n'
    key = ""
    answer = "stream"
    """stream, json, cut, error, refuse-usage"""
    bodies: list[dict[str, Any]]

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.reply(401, b'{"error":{"message":"no key"}}')
        elif self.path == "/v1/models":
            body = (
                self.models if isinstance(self.models, bytes) else json.dumps(self.models).encode()
            )
            self.reply(200, body)
        elif self.path == "/metrics":
            self.reply(200, self.metrics.encode(), "text/plain")
        else:
            self.reply(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        if self.answer == "refuse-usage" and "stream_options" in body:
            self.reply(400, b'{"error":{"message":"stream_options: unknown"}}')
        elif self.answer == "refuse":
            self.reply(400, b'{"error":{"message":"this model answers nobody"}}')
        elif self.answer == "json":
            self.reply(200, b'{"choices":[{"text":" a b"}]}')
        elif self.answer == "cut":
            self.reply(200, 2 * EVENT, "text/event-stream")
        elif self.answer == "error":
            self.reply(200, EVENT + b'data: {"error":{"message":"died"}}\n\n', "text/event-stream")
        else:
            events = body["max_tokens"] * EVENT + b"data: [DONE]\n\n"
            self.reply(200, events, "text/event-stream; charset=utf-8")


@contextmanager
def served(**settings: Any) -> Iterator[HttpEngine]:
    handler = type("H", (Handler,), {**settings, "bodies": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    engine = HttpEngine(f"http://127.0.0.1:{server.server_address[1]}")
    engine.bodies = handler.bodies  # type: ignore[attr-defined]
    try:
        yield engine
    finally:
        engine.close()
        server.shutdown()
        server.server_close()


def test_what_an_engine_says_of_itself() -> None:
    metrics = 'vllm:cache_config_info{block_size="32",num_gpu_blocks="100"} 1.0\n' + Handler.metrics
    with served(metrics=metrics) as engine:
        facts = find_facts(engine)
        check_idle(engine)
    assert (facts.model, facts.engine, facts.max_model_len) == ("m", "vllm", 512)
    assert (facts.kv_tokens, facts.block_size) == (3200, 32)


def test_answers_have_exact_lengths_and_prompts_differ() -> None:
    with served() as engine:
        find_facts(engine)
        engine.find_habits()
        record = engine.run(Stage(2, 40, 12, ()))
        prompts = [tuple(body["prompt"]) for body in engine.bodies[-2:]]  # type: ignore[attr-defined]
    assert [answer.output_tokens for answer in record.batch] == [12, 12]
    assert len(set(prompts)) == 2
    assert {len(prompt) for prompt in prompts} == {40}


def test_options_that_an_engine_does_not_know_are_left_out() -> None:
    with served(answer="refuse-usage") as engine:
        engine.find_habits()
        assert not engine.habits.usage
        assert engine.habits.token_ids


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": b"<html>hello</html>"}, "is it an engine"),
        ({"models": {"data": []}}, "serves no model"),
        ({"models": {"data": [{"id": "a"}, {"id": "b"}]}}, "choose one with --model"),
        ({"key": "secret"}, "401 .no key.; give its key with --api-key-file"),
        ({"metrics": "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\n"}, "3 requests running and 2"),
        ({"answer": "json"}, "needs streaming"),
        ({"answer": "cut"}, "broke off after 2 of 4"),
        ({"answer": "error"}, "ends in an error .died."),
        ({"answer": "refuse"}, "answers nobody"),
    ],
)  # fmt: skip
def test_bad_servers_are_told_apart(settings: dict[str, Any], message: str) -> None:
    def meet(engine: HttpEngine) -> None:
        find_facts(engine)
        check_idle(engine)
        engine.find_habits()

    with served(**settings) as engine, pytest.raises(InputError, match=message):
        meet(engine)


def test_unknown_model_gets_the_nearest_name() -> None:
    with served() as engine, pytest.raises(InputError, match="unknown model 'n'"):
        find_facts(engine, "n")


def test_nobody_there() -> None:
    engine = HttpEngine("http://127.0.0.1:9")
    with pytest.raises(InputError, match="nothing answers there"):
        find_facts(engine)
    engine.close()


def test_no_url() -> None:
    engine = HttpEngine("what is this")
    with pytest.raises(InputError, match="not a URL"):
        find_facts(engine)
    engine.close()


def test_key_is_sent() -> None:
    with served(key="secret") as engine:
        engine.api_key = "secret"
        assert find_facts(engine).model == "m"
