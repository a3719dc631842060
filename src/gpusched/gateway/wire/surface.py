"""What the gateway can be asked, as an OpenAPI description."""

from functools import cache
from importlib import resources

import orjson

from gpusched import __version__


@cache
def description() -> bytes:
    """Return the OpenAPI 3.1 document as JSON."""
    text = (resources.files("gpusched.gateway") / "openapi.json").read_bytes()
    document = orjson.loads(text)
    document["info"]["version"] = __version__
    return orjson.dumps(document)
