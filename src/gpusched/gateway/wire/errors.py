"""Answers that the gateway gives itself, in OpenAI's shape where they are errors."""

import math
from http import HTTPStatus

import orjson

from gpusched.gateway.exchange import Refusal

JSON = b"application/json"


def status_line(status: int) -> bytes:
    """Return the first line of an answer, without its end."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Answer"
    return b"HTTP/1.1 %d %s" % (status, phrase.encode())


def answer(
    status: int,
    body: bytes,
    *,
    content_type: bytes = JSON,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    close: bool = False,
    head_only: bool = False,
) -> bytes:
    """Return a whole HTTP answer; without its body where only the head was asked for."""
    lines = [status_line(status)]
    if status != 204:
        lines.append(b"content-type: " + content_type)
        lines.append(b"content-length: %d" % len(body))
    lines.extend(name + b": " + value for name, value in headers)
    if close:
        lines.append(b"connection: close")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return head if head_only or status == 204 else head + body


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """Return ``{"error": {...}}`` as OpenAI's clients read it."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error})


def refused(refusal: Refusal, *, close: bool = False, head_only: bool = False) -> bytes:
    """Return the HTTP answer of a refusal."""
    headers = refusal.headers
    if refusal.retry_after_s is not None:
        wait_s = max(1, math.ceil(refusal.retry_after_s))
        headers = ((b"retry-after", b"%d" % wait_s), *headers)
    message = refusal.message.encode("utf-8", "replace").decode()
    body = error_body(message, refusal.kind, refusal.code, refusal.param)
    return answer(refusal.status, body, headers=headers, close=close, head_only=head_only)
