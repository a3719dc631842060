"""The event loop over placed blocks: every arrival is routed, waits for cache, and holds it to its end.

Nothing but arrivals and ends of reservations happens, and ends are known when a request is routed,
so arrivals are the only events to step through.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import entry_kernel
from gpusched.policies.routing.reservations import has_room, reserve
from gpusched.policies.routing.ws_rr import chain_wait, retried_s, route


class Requests(NamedTuple):
    """Requests in order of arrival, shape (requests,), and what becomes of them."""

    arrival_s: NDArray[np.float64]
    client: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    wait_s: NDArray[np.float64]
    """For cache; nan if rejected, like the times below."""
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    visits: NDArray[np.int64]
    """Where each request's visits begin in the visits' arrays, shape (requests + 1,)."""


class Times(NamedTuple):
    """The arrays of ``BlockServers``, and room to work in."""

    decode_block_s: NDArray[np.float64]
    prefill_block_s: NDArray[np.float64]
    decode_trip_s: NDArray[np.float64]
    prefill_trip_s: NDArray[np.float64]
    client_rtt_s: NDArray[np.float64]
    server_rtt_s: NDArray[np.float64]
    trip_s: NDArray[np.float64]
    """Of the request at hand, shape (n,)."""
    block_s: NDArray[np.float64]
    """Of the request at hand, shape (n,)."""
    petals_cost_s: NDArray[np.float64]
    petals_previous: NDArray[np.int64]


@entry_kernel
def serve(begin, r, t, g, held, visit_server, visit_blocks, policy, retries, delay_s):
    """Serve requests from number ``begin`` on. Return the first one for which there was no room in
    the arrays of reservations or visits, or the number of requests. ``delay_s`` is the session's
    opening and whatever else precedes every request's work, cache held."""
    used = r.visits[begin]
    for at in range(begin, len(r.arrival_s)):
        if used + len(g.path) > len(visit_server):
            return at
        now_s, client = r.arrival_s[at], r.client[at]
        prompt, steps = r.prompt_tokens[at], r.output_tokens[at] - 1
        tokens = prompt + r.output_tokens[at]
        for i in range(len(g.order)):
            j = g.order[i]
            t.trip_s[j] = (
                t.prefill_trip_s[0, client, j]
                + t.prefill_trip_s[1, client, j] * prompt
                + steps * t.decode_trip_s[client, j]
            )
            t.block_s[j] = (
                t.prefill_block_s[0, j]
                + t.prefill_block_s[1, j] * prompt
                + steps * t.decode_block_s[j]
            )
        length = route(
            policy, g, held, t.trip_s, t.block_s, tokens, now_s, retries,
            t.client_rtt_s, t.server_rtt_s, client, t.decode_block_s,
            (t.petals_cost_s, t.petals_previous),
        )  # fmt: skip
        wait_s = chain_wait(g, held, tokens, now_s, length)
        if length == 0 or wait_s == np.inf:
            r.wait_s[at] = r.first_token_s[at] = r.finish_s[at] = np.nan
            r.visits[at + 1] = used
            continue
        if retries:
            wait_s = retried_s(wait_s)
        for i in range(length):
            if not has_room(held, g.path[i]):
                return at
        ready_s = now_s + wait_s + delay_s
        prompt_s, decode_s = 0.0, 0.0
        for i in range(length):
            j, k = g.path[i], g.path_blocks[i]
            prompt_s += t.prefill_trip_s[0, client, j] + t.prefill_trip_s[1, client, j] * prompt
            prompt_s += (t.prefill_block_s[0, j] + t.prefill_block_s[1, j] * prompt) * k
            decode_s += t.decode_trip_s[client, j] + t.decode_block_s[j] * k
        r.wait_s[at] = wait_s
        r.first_token_s[at] = ready_s + prompt_s
        r.finish_s[at] = r.first_token_s[at] + steps * decode_s
        for i in range(length):
            reserve(held, g.path[i], tokens * g.path_blocks[i], r.finish_s[at])
            visit_server[used], visit_blocks[used] = g.path[i], g.path_blocks[i]
            used += 1
        r.visits[at + 1] = used
    return len(r.arrival_s)
