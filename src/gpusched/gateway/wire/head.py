"""Heads of requests and answers, made fit for the next connection.

Headers that speak of one connection only (RFC 9110, 7.6.1) are not passed on; the rest is.
"""

from gpusched.gateway.exchange import Exchange

OF_ONE_CONNECTION = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
        b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"http2-settings",
    )
)  # fmt: skip
_NOT_ASKED = OF_ONE_CONNECTION | {b"host", b"expect", b"content-length"}
CREDENTIALS = frozenset((b"authorization", b"api-key", b"x-api-key"))
REPORT_FORMAT = b"endpoint-load-metrics-format"
REPORT = b"endpoint-load-metrics"
"""Header by which an engine reports its load (ORCA)."""
_TRACES = (
    b"\r\nconnection:", b"\r\nkeep-alive:", b"\r\nproxy-", b"\r\nupgrade:", b"\r\ntrailer:",
    b"\r\nte:",
)  # fmt: skip


def named_by_connection(headers: list[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the headers that Connection declares to be of this connection only."""
    names: list[bytes] = []
    for name, value in headers:
        if name == b"connection":
            names.extend(part.strip() for part in value.lower().split(b","))
    return frozenset(names) - {b"close", b"keep-alive", b""}


def request_head(
    exchange: Exchange,
    host: bytes,
    body_bytes: int,
    *,
    authorization: bytes | None = None,
    hide_credentials: bool = False,
    ask_report: bool = False,
) -> bytes:
    """Return the head of a request as an engine gets it.

    Args:
        exchange: its method, target and headers.
        host: the engine's, in place of the gateway's.
        body_bytes: length of the body that follows.
        authorization: the engine's own, in place of the client's.
        hide_credentials: whether the client's were meant for the gateway.
        ask_report: whether to ask for the engine's load.
    """
    lines = [exchange.method + b" " + exchange.target + b" HTTP/1.1\r\nhost: " + host]
    dropped = _NOT_ASKED
    for name, value in exchange.headers:
        if name in dropped:
            if name == b"connection" and dropped is _NOT_ASKED:
                own = named_by_connection(exchange.headers)
                if own:
                    dropped = _NOT_ASKED | own
                    lines = [line for line in lines if line.partition(b":")[0] not in own]
        else:
            lines.append(name + b": " + value)
    if hide_credentials or authorization is not None:
        lines[1:] = [line for line in lines[1:] if line.partition(b":")[0] not in CREDENTIALS]
        if authorization is not None:
            lines.append(b"authorization: " + authorization)
    if ask_report:
        lines.append(REPORT_FORMAT + b": TEXT")
    if body_bytes or exchange.method not in (b"GET", b"HEAD", b"OPTIONS", b"DELETE"):
        lines.append(b"content-length: %d" % body_bytes)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def answer_head(head: bytes, lower: bytes, *, close: bool, dechunked: bool, hide: bool) -> bytes:
    """Return the head of an engine's answer as the client gets it, if need be the very same bytes.

    Args:
        head: as it came, with the empty line.
        lower: the same in lower case.
        close: whether the client's connection ends with this answer.
        dechunked: whether chunked framing has been taken off the body.
        hide: whether to leave out a report of load.
    """
    if not (close or dechunked or hide) and head[7:8] == b"1":
        for trace in _TRACES:
            if trace in lower:
                break
        else:
            return head
    first, *rest = head[:-4].split(b"\r\n")
    pairs = [(line.partition(b":")[0].strip().lower(), line) for line in rest]
    values = [(name, line.partition(b":")[2].strip()) for name, line in pairs]
    dropped = OF_ONE_CONNECTION | named_by_connection(values)
    if not dechunked:
        dropped -= {b"transfer-encoding", b"trailer"}
    if hide:
        dropped |= {REPORT}
    dropped -= {b"content-length"}
    lines = [b"HTTP/1.1" + first[8:], *(line for name, line in pairs if name not in dropped)]
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def header_value(head: bytes, lower: bytes, name: bytes) -> bytes | None:
    """Return a header's value out of a raw head."""
    start = lower.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip()
