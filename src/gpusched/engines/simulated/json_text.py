"""JSON by orjson where it is installed."""

import json
from typing import Any

try:
    import orjson
except ImportError:  # pragma: no cover
    orjson = None  # type: ignore[assignment]


def dumps(value: Any) -> bytes:
    """Return a value as JSON."""
    if orjson is not None:
        return bytes(orjson.dumps(value))
    return json.dumps(value, separators=(",", ":")).encode()


def loads(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none.
    """
    return json.loads(text) if orjson is None else orjson.loads(text)
