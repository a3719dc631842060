"""Latencies of an exchange that is over, and whether they meet its objective."""

from collections.abc import Callable
from typing import NamedTuple

from gpusched.domain.slo import Slo
from gpusched.gateway.exchange import Exchange, Refusal

NAN = float("nan")
SLACK = 1 + 1e-12
"""Of a bound, as in ``Slo.met``."""


class Latency(NamedTuple):
    """Seconds, as ``vllm bench serve`` defines them; nan where there is none."""

    ttft_s: float
    tpot_s: float
    e2e_s: float


NONE = Latency(NAN, NAN, NAN)


def latency_of(exchange: Exchange) -> Latency:
    """Return the latencies of an answered exchange, from the arrival of its request.

    An answer sent whole has neither a first token nor gaps that a client could see: only E2E. Of
    several choices in one stream, each is taken to have its share of the tokens.
    """
    if exchange.outcome != "ok" or exchange.status >= 400:
        return NONE
    e2e_s = exchange.last_byte_s - exchange.received_s
    if not exchange.stream:
        return Latency(NAN, NAN, e2e_s)
    first_s = exchange.first_byte_s
    gaps = exchange.output_tokens / exchange.choices - 1
    tpot_s = (exchange.last_byte_s - first_s) / gaps if gaps > 0 else NAN
    return Latency(first_s - exchange.received_s, tpot_s, e2e_s)


Judge = Callable[[Exchange, Latency], bool | None]


def judge_of(slo: Slo) -> Judge:
    """Return a function that tells whether an exchange met an objective; None if it doesn't count.

    A stream is held to every bound, as by ``Slo.met``. An answer sent whole is held to the E2E
    bound, else to the time by which a stream of as many tokens would have had to end. Failed
    requests and those refused for want of capacity have missed; what the client did wrong, what its
    limits forbade and what it gave up does not count, unless its TTFT bound had passed by then.
    """
    infinite = float("inf")
    ttft_s = slo.ttft_s * SLACK if slo.ttft_s is not None else infinite
    tpot_s = slo.tpot_s * SLACK if slo.tpot_s is not None else infinite
    e2e_s = slo.e2e_s * SLACK if slo.e2e_s is not None else infinite

    def judge(exchange: Exchange, latency: Latency) -> bool | None:
        if latency.e2e_s == latency.e2e_s:
            if latency.e2e_s > e2e_s:
                return False
            if exchange.stream:
                return latency.ttft_s <= ttft_s and not latency.tpot_s > tpot_s
            if e2e_s < infinite or tpot_s == infinite or ttft_s == infinite:
                return True
            gaps = max(exchange.output_tokens / exchange.choices - 1, 0)
            return latency.e2e_s <= ttft_s + tpot_s * gaps
        match exchange.outcome:
            case "failed":
                return False
            case "refused":
                refusal = exchange.refusal
                return False if refusal is not None and for_want_of_capacity(refusal) else None
            case "cancelled":
                first_s = exchange.first_byte_s
                waited_s = (first_s if first_s == first_s else exchange.last_byte_s) - (
                    exchange.received_s
                )
                return False if waited_s > ttft_s else None
            case _:
                return False if exchange.status >= 500 else None

    return judge


def for_want_of_capacity(refusal: Refusal) -> bool:
    """Tell whether a refusal is the gateway's doing, not the client's."""
    limited = refusal.code == "rate_limit_exceeded"
    return refusal.status >= 500 or (refusal.status == 429 and not limited)
