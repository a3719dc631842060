"""Token counts out of the last bytes of an answer.

Engines put ``"usage": {...}`` near the end of a JSON answer, or into the last event of a stream.
Within a string JSON escapes quotation marks, so a model's own words never look like it.
"""

import re
from collections import deque

TAIL_READS = 16
"""Reads whose ends are kept: a stream's usage, its ``[DONE]`` and its last chunk may come apart."""
TAIL_BYTES = 4096
"""Kept of each."""

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_COUNT = re.compile(rb'"(prompt_tokens|completion_tokens|cached_tokens)"\s*:\s*(\d{1,12})(?!\d)')


def usage(tail: deque[bytes]) -> dict[bytes, int]:
    """Return what is found of ``prompt_tokens, completion_tokens, cached_tokens``."""
    data = tail[0] if len(tail) == 1 else b"".join(tail)
    start = data.rfind(b'"usage"')
    while start >= 0 and not _USAGE.match(data, start):
        start = data.rfind(b'"usage"', 0, start)
    if start < 0:
        return {}
    return {name: int(digits) for name, digits in _COUNT.findall(data, start)}
