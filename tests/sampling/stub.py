"""An OpenAI-compatible server on 127.0.0.1 that answers from given distributions."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class StubModel:
    answers: Mapping[str, float]
    """Probability of each text."""
    latency_s: Mapping[str, float] | float = 0.0
    tokens: Mapping[str, int] | int = 10
    fail: Callable[[int], bool] = lambda call: False
    """Whether the call of this number gets a status 500."""
    logprobs: Callable[[str], Sequence[Mapping[str, Any]]] | None = None
    token_logprobs: Mapping[str, Sequence[float]] | None = None
    """Of each text's tokens."""
    seed: int = 0


@dataclass
class Stub:
    models: Mapping[str, StubModel]
    url: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finished: int = 0
    aborted: int = 0
    running: int = 0
    most_running: int = 0

    def endpoint(self, name, **options):
        from gpusched.sampling.endpoint import Endpoint

        return Endpoint(self.url, name, **options)


def _of(value, text):
    return value[text] if isinstance(value, Mapping) else value


@asynccontextmanager
async def serving(models):
    from aiohttp import web

    stub = Stub(models)
    rng = {name: np.random.default_rng(model.seed) for name, model in models.items()}
    count = dict.fromkeys(models, 0)

    async def complete(request):
        body = await request.json()
        name = body["model"]
        model, call = models[name], count[name]
        count[name] += 1
        stub.calls.append(body)
        if model.fail(call):
            return web.Response(status=500, text="out of memory")
        texts = list(model.answers)
        source = np.random.default_rng(body["seed"]) if "seed" in body else rng[name]
        text = texts[source.choice(len(texts), p=list(model.answers.values()))]
        stub.running += 1
        stub.most_running = max(stub.most_running, stub.running)
        try:
            await asyncio.sleep(_of(model.latency_s, text))
        except asyncio.CancelledError:
            stub.aborted += 1
            raise
        finally:
            stub.running -= 1
        stub.finished += 1
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if model.logprobs is not None and body.get("logprobs"):
            prompt = body["messages"][-1]["content"]
            choice["logprobs"] = {"content": [{"top_logprobs": list(model.logprobs(prompt))}]}
        if model.token_logprobs is not None and body.get("logprobs"):
            given = [{"token": "t", "logprob": p} for p in model.token_logprobs[text]]
            choice["logprobs"] = {"content": given}
        used = {"prompt_tokens": 7, "completion_tokens": _of(model.tokens, text)}
        return web.Response(
            text=json.dumps({"choices": [choice], "usage": used}), content_type="application/json"
        )

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    stub.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield stub
    finally:
        await runner.cleanup()
