"""Engines' addresses as Envoy takes them: numbers, not names."""

import asyncio
import ipaddress
import logging
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import urlsplit

REFRESH_S = 30.0
_log = logging.getLogger(__name__)


class Addresses:
    """``IP:port`` of each engine's URL; names are looked up anew from time to time."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, url: str) -> str | None:
        """Return where an engine is; None while its name cannot be resolved."""
        found = self._known.get(url)
        if found is None:
            found = literal(url)
            if found is not None:
                self._known[url] = found
        return found

    async def refresh(self, urls: Iterable[str]) -> None:
        """Look up the names among the URLs."""
        loop = asyncio.get_running_loop()
        for url in urls:
            if literal(url) is not None:
                continue
            parts = urlsplit(url)
            try:
                found = await loop.getaddrinfo(parts.hostname, None)
            except OSError as error:
                _log.warning("cannot find the engine %s: %s", url, error)
                continue
            self._known[url] = _joined(str(found[0][4][0]), _port(parts.port, parts.scheme))


def literal(url: str) -> str | None:
    """Return ``IP:port`` of a URL whose host is a number, else None."""
    parts = urlsplit(url)
    with suppress(ValueError):
        return _joined(
            str(ipaddress.ip_address(parts.hostname or "")), _port(parts.port, parts.scheme)
        )
    return None


def _port(port: int | None, scheme: str) -> int:
    return port if port is not None else {"https": 443}.get(scheme, 80)


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
