"""Routing policies by name: ``name``, ``name+parameter=value+...`` or ``file.py:function``.

A user's own function scores a candidate; the lowest score takes the request (see
``gpusched.policies.custom``).
"""

import inspect
from dataclasses import dataclass

from gpusched.policies.custom import Compiled, compiled_policy, is_custom
from gpusched.policies.parameters import read_policy
from gpusched.policies.routing import adaptive, choice


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
    rule: int = adaptive.ADAPTIVE
    """Where a round of a session runs its prefill: see ``adaptive``."""
    alpha: float = 0.9
    """Share of the bound on TTFT up to which a prefill worker counts as well."""
    beta: float = 0.8
    """Share of the bound on ITL up to which a decode worker counts as well."""
    ttft_s: float = 2.0
    """Bound on TTFT; a plan's own where it has one."""
    itl_s: float = 0.05
    """Bound on mean inter-token latency; a plan's own where it has one."""
    window_s: float = 10.0
    """Over which TTFT and ITL are averaged."""
    score: Compiled | None = None
    """A user's own function."""


_AFFINITY = ("slack_requests", "factor")
_PER_ROUND = ("alpha", "beta", "ttft_s", "itl_s", "window_s")
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
    RoutingPolicy("ampd", "a round's prefill where it is sooner done, on the decode replica of its "
                  "history or on a prefill replica, within bounds on TTFT and ITL",
                  choice.PER_ROUND, _PER_ROUND),
    RoutingPolicy("local-prefill", "rounds with a history on the decode replica that has it",
                  choice.PER_ROUND, rule=adaptive.HOME),
    RoutingPolicy("remote-prefill", "every round on a prefill replica, its history shipped there",
                  choice.PER_ROUND, rule=adaptive.AWAY),
)  # fmt: skip

ROUTING = {policy.name: policy for policy in _ALL}

_RANGES = {
    "slack_requests": (0.0, 1e9),
    "factor": (1.0, 1e6),
    "outlier_factor": (0.0, 1e6),
    "alpha": (0.0, 1e6),
    "beta": (0.0, 1e6),
    "ttft_s": (0.0, 1e6),
    "itl_s": (0.0, 1e6),
    "window_s": (1e-3, 1e6),
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
