"""Chat completions by several samples, for requests with a field ``gpusched``.

Each sample is a request to the gateway itself, with the client's key and class, so that it is
routed, limited and counted like any other.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any

import orjson

from gpusched.domain.gateway import GatewaySettings
from gpusched.errors import InputError
from gpusched.gateway.access.access import CREDENTIALS
from gpusched.gateway.exchange import Exchange, Refusal
from gpusched.sampling.endpoint import Endpoint, EndpointError
from gpusched.sampling.safe_answer import safe_answer
from gpusched.sampling.strategy import FIELD, BestOfN, SafeMixing, strategy_of
from gpusched.sampling.vote import vote

MENTION = b'"' + FIELD.encode() + b'"'
"""A body without it has no such field."""
OWN = frozenset((FIELD, "model", "messages", "stream", "stream_options", "seed", "n"))


class Answers:
    """Answers such requests through the gateway's own address."""

    def __init__(self, address: str, settings: GatewaySettings) -> None:
        """``address``: scheme, host and port at which the gateway can reach itself."""
        self.address = address
        passed = (
            settings.class_header, settings.priority_header, settings.session_header, "traceparent",
        )  # fmt: skip
        self._passed = CREDENTIALS | {name.lower().encode() for name in passed}
        self._timeout_s = settings.max_wait_s + settings.first_byte_timeout_s + 3600.0
        self._connector: Any = None

    async def begin(self, exchange: Exchange) -> bytes | Refusal | None:
        """Return the chat completion as JSON, or why there is none; None without the field.

        Cancelling it cancels the samples under way.
        """
        try:
            request = orjson.loads(exchange.body)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(request, dict) or request.get(FIELD) is None:
            return None
        try:
            strategy = strategy_of(request)
            _check(request)
            document = await self._answer(exchange, request, strategy)
        except InputError as error:
            return Refusal(400, str(error), param=FIELD)
        except EndpointError as error:
            return _passed_on(error)
        document = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": request["model"],
            **document,
        }
        return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)

    async def close(self) -> None:
        """Close the connections to the gateway."""
        if self._connector is not None:
            await self._connector.close()
            self._connector = None

    async def _answer(
        self, exchange: Exchange, request: Mapping[str, Any], strategy: object
    ) -> dict[str, Any]:
        options = {name: value for name, value in request.items() if name not in OWN}
        messages, model = request["messages"], request["model"]
        seed = getattr(strategy, "seed", None)
        seed = request.get("seed") if seed is None else seed
        shares = (strategy.models if isinstance(strategy, BestOfN) else None) or {model: 1.0}
        endpoints = [self._endpoint(name, exchange, options) for name in shares]
        probed = self._endpoint(model, exchange, {})
        try:
            if isinstance(strategy, BestOfN):
                voted = await vote(
                    endpoints, messages, weights=list(shares.values()),
                    rule=strategy.stopping_rule(), answer=strategy.answer,
                    limits=strategy.limits(), eager=strategy.eager, seed=seed,
                )  # fmt: skip
                return voted.chat_completion()
            assert isinstance(strategy, SafeMixing)
            helpful, harmful = strategy.probes(probed)
            safe = await safe_answer(
                endpoints[0], messages, helpful=helpful, harmful=harmful,
                candidates=strategy.candidates, rules=strategy.rules(),
                fallback=strategy.fallback, seed=seed,
            )  # fmt: skip
            return safe.chat_completion()
        finally:
            for endpoint in (*endpoints, probed):
                await endpoint.__aexit__(None, None, None)

    def _endpoint(self, model: str, exchange: Exchange, options: Mapping[str, Any]) -> Endpoint:
        if self._connector is None:
            import aiohttp

            # Its own certificate need not name this address.
            self._connector = aiohttp.TCPConnector(limit=0, ssl=False)
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in exchange.headers
            if name in self._passed
        }
        return Endpoint(
            f"{self.address}/v1", model, timeout_s=self._timeout_s, options=options,
            headers=headers, connector=self._connector,
        )  # fmt: skip


def _check(request: Mapping[str, Any]) -> None:
    if request.get("stream"):
        raise InputError(f"{FIELD}: such an answer comes whole; leave out stream: true")
    if request.get("n") not in (None, 1):
        raise InputError(f"{FIELD}: the strategy decides how many samples; leave out n")
    if not isinstance(request.get("model"), str):
        raise InputError("model: expected the name of a model")
    messages = request.get("messages")
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise InputError("messages: expected a list of objects with role and content")
    if not messages:
        raise InputError("messages: expected at least one")
    seed = request.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise InputError(f"seed: expected a whole number, got {seed!r}")


def _passed_on(error: EndpointError) -> Refusal:
    """Return the refusal of a request of which every sample failed."""
    _, _, said = str(error).partition(": ")
    if error.status is None:
        return Refusal(502, f"No sample was answered: {said}", kind="api_error")
    message = said
    try:
        inner = orjson.loads(said.partition(": ")[2])["error"]
        message = str(inner["message"])
        kind, code = str(inner.get("type") or "api_error"), inner.get("code")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        kind, code = "api_error", None
    waits = error.status in (429, 503)
    return Refusal(
        error.status, message, kind, code if isinstance(code, str) else None,
        retry_after_s=1.0 if waits else None,
    )  # fmt: skip
