"""What a policy may look at: small tuples of numbers, the same in simulator, gateway and engine.

Policies are functions of these tuples. The simulator compiles them; everything else calls them as
they are. Token counts are of the KV cache, times are seconds on the caller's clock.
"""

from typing import NamedTuple


class Request(NamedTuple):
    """A request that waits or runs."""

    arrival_s: float
    prompt_tokens: int
    produced_tokens: int
    """Output tokens given so far."""
    predicted_tokens: int
    """Predicted length of the whole output; the true one is never shown."""
    priority: int
    """Class of the request, the most urgent first."""


class Engine(NamedTuple):
    """An engine that forms its next iteration."""

    now_s: float
    running: int
    max_running: int
    free_tokens: int
    """KV cache that can be had."""
    kv_tokens: int
    """KV cache in all."""


class Replica(NamedTuple):
    """A replica that could take a request."""

    position: int
    """Among the candidates."""
    requests: int
    """Outstanding."""
    tokens: int
    """Prompts and expected outputs outstanding."""
    has_prefix: bool
    """Whether it last took a request with the longest known part of this prompt."""


class Fleet(NamedTuple):
    """All replicas that take arrivals."""

    now_s: float
    replicas: int
    requests: int
    tokens: int
