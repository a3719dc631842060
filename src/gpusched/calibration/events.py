"""Counting tokens in a stream of server-sent events, with as little work as possible."""

import json
import re

_COMPLETED = re.compile(rb'"completion_tokens":\s*(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens":\s*(\d+)')
_ERROR = re.compile(rb'^data: \{"error":', re.MULTILINE)


class Events:
    """What came of one stream.

    Where events carry usage, that counts; else every event with a choice is a token.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.prompt_tokens: int | None = None
        self.done = False
        self.error: str | None = None
        self._rest = b""
        self._counted = False

    def take(self, part: bytes) -> int:
        """Take in bytes of the stream and return the tokens so far."""
        data = self._rest + part
        end = data.rfind(b"\n\n")
        if end < 0:
            self._rest = data
            return self.tokens
        whole, self._rest = data[: end + 2], data[end + 2 :]
        if b"[DONE]" in whole:
            self.done = True
        if _ERROR.search(whole):
            self.error = _message(whole)
        counts = _COMPLETED.findall(whole)
        choices = whole.count(b'"choices":[{') + whole.count(b'"choices": [{')
        if counts and (self._counted or choices):
            self._counted = True
        if counts and self._counted:
            self.tokens = max(self.tokens, int(counts[-1]))
        elif counts:
            self.tokens = max(self.tokens, int(counts[-1])) if choices else self.tokens
        else:
            self.tokens += choices
        prompt = _PROMPT.search(whole)
        if prompt:
            self.prompt_tokens = int(prompt.group(1))
        return self.tokens


def _message(data: bytes) -> str:
    for line in data.splitlines():
        if line.startswith(b'data: {"error":'):
            try:
                error = json.loads(line[6:])["error"]
            except (ValueError, KeyError):
                break
            return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    return "an error"
