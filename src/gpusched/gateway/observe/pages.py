"""Pages a gateway serves about itself: status, metrics."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Protocol

import orjson

from gpusched.gateway.exchange import Exchange, Refusal
from gpusched.gateway.observe.exposition import CONTENT_TYPE

SAFE_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
POLICY = (
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)


@dataclass(frozen=True, slots=True)
class Page:
    """An answer of the gateway's own."""

    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = SAFE_HEADERS


class Source(Protocol):
    """What the pages show."""

    def metrics_text(self) -> str:
        """Return the metrics in Prometheus' format."""
        ...

    def status(self) -> dict[str, object]:
        """Return what the status page shows."""
        ...


class Looking(Protocol):
    """Who may look."""

    def look(self, exchange: Exchange) -> Refusal | None:
        """Refuse who may not see metrics and status."""
        ...


class Pages:
    """Serves ``/``, ``/status``, ``/status.json`` and ``/metrics`` to whom ``access`` lets in."""

    def __init__(self, source: Source, access: Looking) -> None:
        self._source, self._access = source, access

    def answer(self, exchange: Exchange) -> Page | Refusal | None:
        """Return the page that a request asks for; None if it is none of these."""
        path = exchange.target.partition(b"?")[0]
        if path not in PATHS:
            return None
        if exchange.method not in (b"GET", b"HEAD"):
            return Refusal(405, "Use GET here.", headers=((b"allow", b"GET, HEAD"),))
        refusal = self._access.look(exchange)
        if refusal is not None:
            return refusal
        if path == b"/metrics":
            return Page(200, CONTENT_TYPE, self._source.metrics_text().encode())
        if path == b"/status.json":
            return Page(200, "application/json", orjson.dumps(self._source.status()))
        return Page(200, "text/html; charset=utf-8", status_page(), (*SAFE_HEADERS, POLICY))


PATHS = frozenset((b"/", b"/status", b"/status.json", b"/metrics"))


@cache
def status_page() -> bytes:
    """Return the status page: one file, which asks for ``status.json`` once a second."""
    from gpusched.report.html import style_sheet

    folder = resources.files("gpusched.gateway.observe")
    style, script = ((folder / name).read_text("utf-8") for name in ("status.css", "status.js"))
    html = (folder / "status.html").read_text("utf-8")
    return (html.replace("/*style*/", style_sheet() + style).replace("/*script*/", script)).encode()
