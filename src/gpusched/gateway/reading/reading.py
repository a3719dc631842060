"""What a request asks for, from its path, headers and body. The body is never altered."""

from collections.abc import Sequence
from typing import Any

import orjson

from gpusched.domain.gateway import GatewaySettings
from gpusched.gateway.dispatch.models import Models
from gpusched.gateway.dispatch.refusals import unknown_model
from gpusched.gateway.exchange import CHAT, COMPLETION, OTHER, Exchange, Refusal
from gpusched.gateway.reading.prompt_tokens import PromptTokens
from gpusched.policies.lengths.predictors import LengthHistory, parse_predictor

BLOCK_BYTES = 256
"""Of a prompt's text, hashed together: about 64 tokens."""
MOST_BLOCKS = 256
"""Leading blocks that are hashed."""
MOST_CHOICES = 1024
CERTAIN = 2.0
"""A prompt whose tokens are estimated is refused as too long only if it is so by this factor."""
MOST_PRIORITY = 2**31 - 1

_KINDS = {b"/v1/chat/completions": CHAT, b"/v1/completions": COMPLETION}
_PER_IMAGE_TOKENS = 576
"""Of a part of a message that is no text."""


class RequestReading:
    """Reads requests and learns from their answers."""

    def __init__(self, settings: GatewaySettings, names: Sequence[str], models: Models) -> None:
        predictor = parse_predictor(settings.length_predictor)
        self._constant = round(predictor.value) if predictor.kind == "constant" else 0
        self.lengths = None if self._constant else LengthHistory(predictor)
        self.tokens = PromptTokens(settings.tokenizer)
        self.models = models
        self.configure(settings, names)
        if self.lengths is not None:
            # Compiled now, so that no request waits for it.
            self.lengths.predict()
            LengthHistory(predictor).observe(1)

    def configure(self, settings: GatewaySettings, names: Sequence[str]) -> None:
        """Go by other classes and headers, after a reload; what was learned stays."""
        self._class_of = {name.encode(): i for i, name in enumerate(names)}
        self._class_header = settings.class_header.lower().encode()
        self._priority_header = settings.priority_header.lower().encode()
        self._session_header = settings.session_header.lower().encode()
        self._told = frozenset((self._class_header, self._priority_header, self._session_header))

    def read(self, exchange: Exchange) -> Refusal | None:
        """Fill in what the dispatcher needs from path, headers and body."""
        path = exchange.target.partition(b"?")[0]
        kind = exchange.kind = _KINDS.get(path, OTHER)
        refusal = self._read_headers(exchange)
        if refusal is not None:
            return refusal
        if kind == OTHER:
            return self._read_other(exchange)
        if exchange.method != b"POST":
            return Refusal(405, f"{path.decode('latin-1')} takes POST")
        try:
            body = orjson.loads(exchange.body)
        except orjson.JSONDecodeError as error:
            return Refusal(400, f"the body is not valid JSON: {error}")
        if type(body) is not dict:
            return Refusal(400, "the body must be a JSON object")
        refusal = self._read_fields(exchange, body)
        if refusal is not None:
            return refusal
        refusal = self._read_prompt(exchange, body)
        if refusal is not None:
            return refusal
        self._expect(exchange)
        return None

    def learn(self, exchange: Exchange) -> None:
        """Take in the counts of an answer that has ended."""
        if exchange.outcome != "ok" or exchange.kind == OTHER:
            return
        if exchange.prompt_bytes and exchange.prompt_tokens > 0:
            self.tokens.learn(exchange.prompt_bytes, exchange.prompt_tokens)
        output = exchange.output_tokens // max(exchange.choices, 1)
        if output > 0 and self.lengths is not None:
            prompt, slo_class = max(exchange.prompt_tokens, 1), exchange.slo_class
            self.lengths.observe(output, prompt_tokens=prompt, priority=slo_class)

    def _read_headers(self, exchange: Exchange) -> Refusal | None:
        """Take class, priority and session from headers; by default they are the key's."""
        told = self._told
        for name, value in exchange.headers:
            if name in told:
                if name == self._class_header:
                    found = self._class_of.get(value)
                    if found is None:
                        known = b", ".join(self._class_of).decode()
                        return Refusal(
                            400, f"{name.decode()}: no class {_shown(value)}; known are {known}"
                        )
                    exchange.slo_class = found
                elif name == self._priority_header:
                    number = _whole_number(value)
                    if number is None:
                        return Refusal(400, f"{name.decode()}: expected a whole number")
                    exchange.priority = number
                else:
                    exchange.session = value[:256]
        return None

    def _read_other(self, exchange: Exchange) -> Refusal | None:
        exchange.predicted_tokens = 1
        exchange.prompt_tokens = 1
        if exchange.method == b"POST" and exchange.body[:1] == b"{":
            try:
                body = orjson.loads(exchange.body)
            except orjson.JSONDecodeError:
                return None
            exchange.prompt_tokens = self.tokens.estimate.of(len(exchange.body))
            model = body.get("model")
            if isinstance(model, str):
                exchange.model = model
                if self.models.group_of(model) < 0:
                    return unknown_model(model, self.models.names)
        return None

    def _read_fields(self, exchange: Exchange, body: dict[str, Any]) -> Refusal | None:
        model = body.get("model")
        if type(model) is not str or not model:
            return _wrong("model", "the model's name is missing", model)
        if self.models.group_of(model) < 0:
            return unknown_model(model, self.models.names)
        exchange.model = model
        exchange.stream = body.get("stream") is True
        choices = body.get("n")
        if choices is not None:
            if type(choices) is not int or not 1 <= choices <= MOST_CHOICES:
                return _wrong("n", f"expected a whole number from 1 to {MOST_CHOICES}", choices)
            exchange.choices = choices
        name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        most = body.get(name)
        if most is not None:
            if type(most) is not int or not 0 <= most < 2**31:
                return _wrong(name, "expected a whole number of tokens", most)
            exchange.max_tokens = most
        priority = body.get("priority")
        if priority is not None:
            if type(priority) is not int or abs(priority) > MOST_PRIORITY:
                return _wrong("priority", "expected a whole number, lower goes first", priority)
            exchange.priority = priority
        return None

    def _read_prompt(self, exchange: Exchange, body: dict[str, Any]) -> Refusal | None:
        if exchange.kind == CHAT:
            messages = body.get("messages")
            if type(messages) is not list or not messages:
                return _wrong("messages", "expected a list of at least one message", messages)
            start = exchange.body.find(b'"messages"')
            text, others = _texts_of(messages)
            if text is None:
                return _wrong("messages", "every message must be an object", None)
            self._count(exchange, text, others * _PER_IMAGE_TOKENS)
        else:
            prompt = body.get("prompt")
            start = exchange.body.find(b'"prompt"')
            if type(prompt) is str:
                self._count(exchange, prompt, 0)
            elif type(prompt) is list and prompt:
                if not self._count_list(exchange, prompt):
                    return _wrong("prompt", "expected text, token ids, or a list of either", None)
            else:
                return _wrong("prompt", "expected text or a list of token ids", prompt)
        longest = self.models.longest_tokens
        if longest is not None and exchange.prompt_tokens > longest:
            sure = self.tokens.counts or not exchange.prompt_bytes
            if sure or exchange.prompt_tokens > CERTAIN * longest:
                return Refusal(
                    400,
                    f"the prompt has about {exchange.prompt_tokens} tokens; the longest context of "
                    f"the engines here is {longest}",
                    code="context_length_exceeded",
                    param="messages" if exchange.kind == CHAT else "prompt",
                )
        exchange.prefix = block_hashes(exchange.body, start, exchange.model)
        return None

    def _count(self, exchange: Exchange, text: str, extra_tokens: int) -> None:
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        exchange.prompt_bytes = size
        exchange.prompt_tokens = self.tokens.of(text, size) + extra_tokens

    def _count_list(self, exchange: Exchange, prompt: list[Any]) -> bool:
        """Count a prompt of token ids, or a batch of prompts; return whether it is one."""
        if all(type(item) is int for item in prompt):
            exchange.prompt_tokens = len(prompt)
        elif all(type(item) is str for item in prompt):
            self._count(exchange, "".join(prompt), 0)
            exchange.choices *= len(prompt)
        elif all(type(item) is list for item in prompt):
            exchange.prompt_tokens = max(sum(map(len, prompt)), 1)
            exchange.choices *= len(prompt)
        else:
            return False
        return True

    def _expect(self, exchange: Exchange) -> None:
        predicted = self._constant
        if self.lengths is not None:
            predicted = self.lengths.predict(
                prompt_tokens=exchange.prompt_tokens, priority=exchange.slo_class
            )
        if exchange.max_tokens is not None and predicted > exchange.max_tokens:
            predicted = max(exchange.max_tokens, 1)
        exchange.predicted_tokens = predicted * exchange.choices


def block_hashes(body: bytes, start: int, model: str) -> tuple[int, ...]:
    """Return the chained hashes of the whole blocks of a body from ``start``."""
    if start < 0:
        return ()
    end = min(len(body), start + MOST_BLOCKS * BLOCK_BYTES)
    chain = hash(model)
    hashes = []
    for low in range(start, end - BLOCK_BYTES + 1, BLOCK_BYTES):
        chain = hash((chain, body[low : low + BLOCK_BYTES]))
        hashes.append(chain)
    return tuple(hashes)


def _texts_of(messages: list[Any]) -> tuple[str | None, int]:
    """Return the text of all messages and the number of parts that are no text."""
    texts: list[str] = []
    others = 0
    for message in messages:
        if type(message) is not dict:
            return None, 0
        content = message.get("content")
        if type(content) is str:
            texts.append(content)
        elif type(content) is list:
            for part in content:
                text = part.get("text") if type(part) is dict else None
                if type(text) is str:
                    texts.append(text)
                else:
                    others += 1
    return (texts[0] if len(texts) == 1 else "".join(texts)), others


def _wrong(param: str, problem: str, value: object) -> Refusal:
    got = "" if value is None else f", got {_short(value)}"
    return Refusal(400, f"{param}: {problem}{got}", param=param)


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, list | dict) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _shown(value: bytes) -> str:
    return repr(value[:60].decode("utf-8", "replace"))


def _whole_number(value: bytes) -> int | None:
    try:
        number = int(value) if len(value) <= 12 else MOST_PRIORITY + 1
    except ValueError:
        return None
    return number if abs(number) <= MOST_PRIORITY else None
