"""Policies such as a user writes, for the tests."""

import math


def emptiest(replica, request, weight=1.0):
    """Fewest tokens, a known prefix being worth some."""
    return replica.tokens + weight * request.prompt_tokens * (0.0 if replica.has_prefix else 1.0)


def shed(request, fleet, limit=100.0):
    """Put off while the fleet is full, and give up after a second."""
    if fleet.requests < limit * fleet.replicas:
        return 0.0
    return 0.07 if fleet.now_s < request.arrival_s + 1.0 else math.inf
