"""A request as a line: of the request log, which is a trace, and of the log on standard error."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from gpusched.gateway.exchange import CHAT, NOWHERE, Exchange
from gpusched.gateway.observe.latency import Latency

MAX_SESSIONS = 100_000

LEVELS = {"info": 0, "warning": 1, "error": 2, "off": 3}


def level_of(exchange: Exchange) -> str:
    """Return the level of a request's line."""
    if exchange.outcome == "failed" or exchange.status >= 500:
        return "error"
    return "warning" if exchange.outcome == "refused" or exchange.status >= 400 else "info"


class Sessions:
    """Rounds of sessions, for as many as fit: how many there were, and when the last one ended."""

    def __init__(self) -> None:
        self._rounds: OrderedDict[bytes, tuple[int, float]] = OrderedDict()

    def next(self, session: bytes, arrived_s: float, ended_s: float) -> tuple[int, float] | None:
        """Return round and think time of a session's request that is over.

        None for one that came before the answer to another had ended: no round after it.
        """
        number, before_s = self._rounds.get(session, (0, arrived_s))
        if arrived_s < before_s:
            return None
        self._rounds[session] = (number + 1, ended_s)
        self._rounds.move_to_end(session)
        if len(self._rounds) > MAX_SESSIONS:
            self._rounds.popitem(last=False)
        return number, arrived_s - before_s


class Lines:
    """Makes lines of exchanges that are over.

    Columns of a trace: ``arrival_s`` since 1970, ``prompt_tokens``, ``output_tokens``, ``class``;
    of a session ``session_id`` (a hash), ``round``, ``think_s``; ``block_ids``,
    ``block_tokens``. The others say what happened.
    """

    def __init__(
        self,
        engine_name: Callable[[int], str],
        classes: tuple[str, ...],
        clock_offset_s: float,
        block_tokens: int,
    ) -> None:
        """``clock_offset_s`` is the time since 1970 when the exchanges' clock was at 0."""
        self._engine_name = engine_name
        self.classes = classes
        self._offset_s = clock_offset_s
        self._block_tokens = block_tokens
        self._sessions = Sessions()

    def row(self, exchange: Exchange, latency: Latency, met: bool | None) -> bytes:
        """Return a line of the request log without its prefix, newline and all."""
        received_s = exchange.received_s
        engine = exchange.engine
        fields: dict[str, Any] = {
            "arrival_s": received_s + self._offset_s,
            "prompt_tokens": exchange.prompt_tokens,
            "output_tokens": exchange.output_tokens,
            "class": self.classes[exchange.slo_class],
            "model": exchange.model[:200],
            "client": exchange.client,
            "engine": self._engine_name(engine) if engine != NOWHERE else None,
            "policy": exchange.branch,
            "outcome": exchange.outcome,
            "status": exchange.status,
            "stream": exchange.stream,
            "ttft_s": latency.ttft_s,
            "tpot_s": latency.tpot_s,
            "e2e_s": latency.e2e_s,
            "queue_s": exchange.sent_s - received_s,
            "slo_met": met,
            "cached_tokens": exchange.cached_tokens,
            "predicted_tokens": exchange.predicted_tokens,
            "tried": len(exchange.tried),
        }
        if exchange.refusal is not None:
            fields["reason"] = exchange.refusal.code or exchange.refusal.kind
        if exchange.session:
            digest = hashlib.blake2b(exchange.session, digest_size=6).digest()
            ended_s = exchange.last_byte_s
            later = self._sessions.next(digest, received_s, max(ended_s, received_s))
            if later is not None:
                fields["session_id"] = int.from_bytes(digest)
                fields["round"], fields["think_s"] = later
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)

    def with_prefix(self, row: bytes, exchange: Exchange) -> bytes:
        """Return a row with the hashes of those leading blocks that lie within the prompt."""
        prefix = exchange.prefix[: exchange.prompt_tokens // self._block_tokens]
        if not prefix:
            return row
        return b'%b,"block_ids":%b,"block_tokens":%d}\n' % (
            row[:-2], orjson.dumps(prefix), self._block_tokens,
        )  # fmt: skip

    def message(self, exchange: Exchange, row: bytes, level: str, *, prompts: bool) -> bytes:
        """Return a row as a line of the log."""
        line = b'{"time":"%b","level":"%b","event":"request",%b' % (
            _now(), level.encode(), row[1:],
        )  # fmt: skip
        if prompts and (said := _prompt(exchange)) is not None:
            line = b'%b,"prompt":%b}\n' % (line[:-2], said)
        return line


def event_line(level: str, event: str, fields: dict[str, Any]) -> bytes:
    """Return something that happened as a line of the log."""
    document = {"time": _now().decode(), "level": level, "event": event, **fields}
    return orjson.dumps(document, default=str, option=orjson.OPT_APPEND_NEWLINE)


def _now() -> bytes:
    return datetime.now(UTC).isoformat(timespec="milliseconds").encode()


def _prompt(exchange: Exchange) -> bytes | None:
    try:
        body = orjson.loads(exchange.body)
        said = body.get("messages" if exchange.kind == CHAT else "prompt")
    except (orjson.JSONDecodeError, AttributeError):
        return None
    return orjson.dumps(said)
