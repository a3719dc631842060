"""Routing policies by name: ``name``, ``name+parameter=value+...`` or ``file.py:function``.

A user's own function scores a candidate; the lowest score takes the request (see
``gpusched.policies.custom``).
"""

import inspect
from dataclasses import dataclass

from gpusched.policies.custom import Compiled, compiled_policy, is_custom
from gpusched.policies.parameters import read_policy
from gpusched.policies.routing import choice


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """One routing policy with its parameters."""

    name: str
    summary: str
    kind: int
    parameters: tuple[str, ...] = ()
    slack_requests: float = choice.SLACK_REQUESTS
    """An affinity is kept while its replica has at most ``factor`` times the requests of the least
    loaded one, plus this many. Under lexicographic placement, tokens decide among replicas with up
    to so many requests more than the fewest."""
    factor: float = choice.FACTOR
    outlier_factor: float = 1.5
    """Replicas whose load exceeds the third quartile by more than this many interquartile ranges
    are left out."""
    score: Compiled | None = None
    """A user's own function."""


_AFFINITY = ("slack_requests", "factor")
_ALL = (
    RoutingPolicy("round-robin", "in turn", choice.ROUND_ROBIN),
    RoutingPolicy("random", "at random", choice.RANDOM),
    RoutingPolicy("least-requests", "fewest outstanding requests", choice.LEAST_REQUESTS),
    RoutingPolicy("least-tokens", "fewest outstanding tokens, expected outputs included",
                  choice.LEAST_TOKENS),
    RoutingPolicy("power-of-two", "the less loaded of two at random", choice.POWER_OF_TWO),
    RoutingPolicy("prefix-affinity", "who last had the longest known prefix, unless overloaded",
                  choice.PREFIX_AFFINITY, _AFFINITY),
    RoutingPolicy("session-affinity", "who had the session's last round, unless overloaded",
                  choice.SESSION_AFFINITY, _AFFINITY),
    RoutingPolicy("iqr-lexicographic",
                  "fewest requests, then fewest tokens, outliers in tokens left out (SBS)",
                  choice.LEXICOGRAPHIC, ("outlier_factor", "slack_requests"), slack_requests=0.0),
)  # fmt: skip

ROUTING = {policy.name: policy for policy in _ALL}

_RANGES = {
    "slack_requests": (0.0, 1e9),
    "factor": (1.0, 1e6),
    "outlier_factor": (0.0, 1e6),
}


def routing_policy(text: str) -> RoutingPolicy:
    """Return the routing policy that ``text`` names, with the parameters it sets.

    Raises:
        InputError: no such policy or parameter, or a value out of range.
    """
    if is_custom(text):
        score = compiled_policy(text, "routing")
        summary = inspect.getdoc(score.function) or "a user's policy"
        return RoutingPolicy(text, summary, choice.CUSTOM, score=score)
    return read_policy("routing", text, ROUTING, _RANGES)
