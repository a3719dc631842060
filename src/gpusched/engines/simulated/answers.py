"""OpenAI requests read, and their answers written token by token."""

import time
from collections.abc import Callable
from typing import Any

from gpusched.engines.simulated.http import Connection
from gpusched.engines.simulated.iterations import Sequence
from gpusched.engines.simulated.json_text import dumps, loads
from gpusched.errors import InputError

CHARACTERS_PER_TOKEN = 4
COMPLETION_TOKENS, CHAT_TOKENS = 16, 256
"""Answered where ``max_tokens`` is not given."""
MAX_CHOICES = 64

TOKENS = [f" {i:03d}" for i in range(1000)]
"""The text of an answer counts its tokens, so that a lost or doubled one is seen."""
_TOKEN_BYTES = [token.encode() for token in TOKENS]


def text_of(tokens: int) -> str:
    """Return the text of an answer of that length."""
    return "".join(TOKENS[i % 1000] for i in range(tokens))


class Asked:
    """What a request asks for.

    Raises:
        InputError: it is not a request of the OpenAI API, or names what this engine lacks.
    """

    def __init__(
        self, body: bytes, chat: bool, model: str, max_model_len: int,
        count: Callable[[str], int], block_tokens: int,
    ) -> None:  # fmt: skip
        try:
            values = loads(body)
        except ValueError as error:
            raise InputError(f"the body is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise InputError("the body must be a JSON object")
        named = values.get("model", model)
        if named != model:
            raise LookupError(f"The model `{named}` does not exist.")
        self.chat = chat
        self.stream = values.get("stream") is True
        options = values.get("stream_options")
        self.include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        self.choices = _whole(values, "n", 1, 1, MAX_CHOICES)
        self.priority = _whole(values, "priority", 0, -(2**31), 2**31)
        self.prompts = _prompts(values, chat)
        self.prompt_tokens = [
            count(p) if isinstance(p, str) else max(len(p), 1) for p in self.prompts
        ]
        longest = max(self.prompt_tokens)
        default = min(CHAT_TOKENS if chat else COMPLETION_TOKENS, max(max_model_len - longest, 1))
        limit = _whole(values, "max_tokens", default, 1, 10**7)
        self.max_tokens = _whole(values, "max_completion_tokens", limit, 1, 10**7)
        self.output_tokens = _whole(values, "output_tokens", self.max_tokens, 1, 10**7)
        self.output_tokens = min(self.output_tokens, self.max_tokens)
        if longest + self.max_tokens > max_model_len:
            raise InputError(
                f"This model's maximum context length is {max_model_len} tokens; the request asks for "
                f"{longest} in the prompt and {self.max_tokens} in the answer."
            )
        self.prefixes = [_blocks(p, block_tokens) for p in self.prompts]
        transfer = values.get("kv_transfer_params")
        self.transfer: dict[str, Any] = transfer if isinstance(transfer, dict) else {}


class Answer:
    """One HTTP answer of one or more sequences."""

    def __init__(self, asked: Asked, connection: Connection, name: str, model: str) -> None:
        self.asked = asked
        self.connection = connection
        self.sequences: list[Sequence] = []
        self.events = 0
        self.drop_after: int | None = None
        self.left = 0
        self.first_token_s = float("nan")
        self.finished: Callable[[Answer, float], None] | None = None
        self.extra_headers = b""
        self.created = int(time.time())
        self.name = name
        self.model = model
        self._held: list[bytes] | None = None

    def open(self) -> None:
        """Send the head of a stream with its first event."""
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n"
            + self.extra_headers
            + b"\r\n"
        )

    def hold(self) -> None:
        """Keep back what is written, until ``release``."""
        self._held = []

    def release(self) -> None:
        """Write what was kept back."""
        held, self._held = self._held, None
        for data in held or ():
            self.connection.write(data)
        if held is not None and self.left == 0:
            self.connection.done()

    def choice(self, index: int) -> "Choice":
        """Return the sink of one sequence."""
        self.left += 1
        return Choice(self, index)

    def event(self, payload: bytes) -> None:
        """Send one server-sent event in a chunk of its own."""
        self.events += 1
        if self.drop_after is not None and self.events > self.drop_after:
            self.connection.cut()
            return
        self._write(b"%x\r\n%s\r\n" % (len(payload), payload))

    def ended(self, now_s: float) -> None:
        """Finish the answer once all its sequences have."""
        self.left -= 1
        if self.left:
            return
        if self.finished is not None:
            self.finished(self, now_s)
        if self.asked.stream:
            if self.asked.include_usage:
                record = self._record() | {"choices": [], "usage": self._usage()}
                self.event(b"data: " + dumps(record) + b"\n\n")
            self._write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            if self._held is None:
                self.connection.done()
            return
        if self.drop_after is not None:
            self.connection.cut()
            return
        body = dumps(self._whole())
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n"
            % (len(body), self.extra_headers)
        )
        self._write(head + body)
        if self._held is None:
            self.connection.done()

    def _write(self, data: bytes) -> None:
        if self._held is None:
            self.connection.write(data)
        else:
            self._held.append(data)

    def _record(self) -> dict[str, Any]:
        kind = "text_completion"
        if self.asked.chat:
            kind = "chat.completion.chunk" if self.asked.stream else "chat.completion"
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}

    def _usage(self) -> dict[str, Any]:
        prompt = sum(self.asked.prompt_tokens)
        output = sum(s.produced for s in self.sequences)
        cached = sum(s.cached for s in self.sequences)
        return {
            "prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip

    def _whole(self) -> dict[str, Any]:
        choices = []
        for index, sequence in enumerate(self.sequences):
            text = text_of(sequence.produced)
            said = {"message": {"role": "assistant", "content": text}} if self.asked.chat else {
                "text": text
            }  # fmt: skip
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": self.reason})
        whole = self._record() | {"choices": choices, "usage": self._usage()}
        if self.asked.transfer.get("do_remote_decode"):
            whole["kv_transfer_params"] = {
                "do_remote_prefill": True, "do_remote_decode": False,
                "remote_engine_id": self.model, "remote_block_ids": [0],
                "remote_host": "127.0.0.1", "remote_port": 0,
            }  # fmt: skip
        return whole

    @property
    def reason(self) -> str:
        """Why an answer ends."""
        return "length" if self.asked.output_tokens == self.asked.max_tokens else "stop"

    def parts(self, index: int) -> tuple[bytes, bytes, bytes]:
        """Return what stands before and after the text in a choice's events, and after the last."""
        record = self._record()
        said = {"delta": {"content": "@"}} if self.asked.chat else {"text": "@"}
        record["choices"] = [{"index": index, **said, "logprobs": None, "finish_reason": None}]
        before, after = dumps(record).split(b"@")
        closing = after.replace(b"null}]", b'"%s"}]' % self.reason.encode())
        return b"data: " + before, after + b"\n\n", closing + b"\n\n"


class Choice:
    """Takes the tokens of one sequence of an answer."""

    __slots__ = ("after", "answer", "before", "closing", "count", "index")

    def __init__(self, answer: Answer, index: int) -> None:
        self.answer = answer
        self.index = index
        self.count = 0
        if answer.asked.stream:
            self.before, self.after, self.closing = answer.parts(index)

    def token(self, now_s: float, *, last: bool) -> None:
        """Send the next token."""
        answer = self.answer
        count = self.count
        self.count = count + 1
        if count == 0:
            self._first(now_s)
        if answer.asked.stream:
            tail = self.closing if last else self.after
            answer.event(self.before + _TOKEN_BYTES[count % 1000] + tail)
        if last:
            answer.ended(now_s)

    def _first(self, now_s: float) -> None:
        answer = self.answer
        opening = answer.first_token_s != answer.first_token_s
        if opening:
            answer.first_token_s = now_s
        if not answer.asked.stream:
            return
        if opening:
            answer.open()
        if answer.asked.chat:
            role = self.before.replace(b'{"content":"', b'{"role":"assistant","content":"')
            answer.event(role + self.after)


def _whole(values: dict[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = values.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{key} must be a whole number from {low} to {high}, got {value!r}")
    return value


def _prompts(values: dict[str, Any], chat: bool) -> list[str | tuple[int, ...]]:
    if chat:
        messages = values.get("messages")
        if not isinstance(messages, list) or not messages:
            raise InputError("messages must be a list of messages")
        return ["".join(f"{m.get('role')}: {_content(m)}\n" for m in map(_message, messages))]
    prompt = values.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(token, int) for token in prompt):
            return [tuple(prompt)]
        if all(isinstance(p, str) for p in prompt):
            return prompt
        if all(isinstance(p, list) and all(isinstance(t, int) for t in p) for p in prompt):
            return [tuple(p) for p in prompt]
    raise InputError("prompt must be a text, a list of token ids, or a list of either")


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise InputError("messages must be objects with role and content")
    return message


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _blocks(prompt: str | tuple[int, ...], block_tokens: int) -> tuple[int, ...]:
    """Hashes of a prompt's whole blocks, each of all before it."""
    size = block_tokens * CHARACTERS_PER_TOKEN if isinstance(prompt, str) else block_tokens
    found, before = [], 0
    for start in range(0, len(prompt) - size + 1, size):
        before = hash((before, prompt[start : start + size]))
        found.append(before)
    return tuple(found)
