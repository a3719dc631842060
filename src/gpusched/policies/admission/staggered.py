"""Staggered release to gated engines: one packed batch, to one engine, at staggered instants.

A gated engine takes work in only between passes. A request sent at once waits in front of one gate,
half a pass on average, though another engine's may open sooner. Held back until the next gate, it
waits a share of that, provided that gates open one after another; so releases keep an interval of
an engine's cycle over the engines in use (arXiv 2512.16134, Algorithm 1 and state synchronisation;
the shortcuts of ``release_s`` and the exact form of the tiers are ours).

What is known of an engine comes in three tiers. Its report of a pass's end is the truth. Without
one, it is taken to be ready when the pass should have ended. If it stays silent beyond a deadline
it is out of use until it reports again.
"""

import math

from gpusched.compilation import kernel


@kernel
def pass_s(fixed_s, token_s, busiest_tokens):
    """Seconds of a pass: affine in the tokens of the busiest data-parallel unit."""
    return fixed_s + token_s * busiest_tokens


@kernel
def record_pass(window_s, row, passes, duration_s):
    """Enter the time of pass number ``passes`` (from 0) in the ring of the latest ones."""
    window_s[row, passes % window_s.shape[1]] = duration_s


@kernel
def mean_pass_s(window_s, row, passes, prior_s):
    """Mean time of the latest passes, ``prior_s`` before the first."""
    count = min(passes, window_s.shape[1])
    if count == 0:
        return prior_s
    total_s = 0.0
    for i in range(count):
        total_s += window_s[row, i]
    return total_s / count


@kernel
def release_interval_s(mean_s, network_s, active_engines, lowest_s, highest_s):
    """Seconds between releases: an engine's cycle over the engines in use, held within bounds.

    Endless without engines; where the bounds contradict each other the lower one holds.
    """
    if active_engines == 0:
        return math.inf
    return max(min((mean_s + network_s) / active_engines, highest_s), lowest_s)


@kernel
def release_s(
    last_release_s, interval_s, lowest_s, buffered_tokens, room_tokens, unloaded, goes_on
):
    """When the buffer may be released to the engine that comes next.

    The interval after the last release; but only ``lowest_s`` after it if the buffer fills the
    engine's room, if it was ``unloaded`` (the buffer empty and an engine without work when the
    first request came), or if the engine ``goes_on`` with work it has anyway.
    """
    if unloaded or goes_on or buffered_tokens >= room_tokens:
        return last_release_s + lowest_s
    return last_release_s + max(interval_s, lowest_s)


@kernel
def deadline_s(now_s, expected_s, mean_s, network_s, patience):
    """When an engine that was just given work is suspect if it has not reported: ``patience`` times
    the pass expected, or an average one if that is longer."""
    return now_s + patience * (max(expected_s, mean_s) + network_s)


@kernel
def ready_since_s(now_s, reported, reported_s, predicted_end_s, out):
    """Since when an engine can take a batch; endless if it cannot.

    ``reported`` says whether its last report came after it was last given work, ``out`` whether it
    is out of use.
    """
    if out:
        return math.inf
    if reported:
        return reported_s
    return predicted_end_s if predicted_end_s <= now_s else math.inf


@kernel
def oldest_ready(now_s, reported, reported_s, predicted_end_s, out, low, high):
    """The engine in ``low .. high - 1`` that has been ready longest, -1 if none is.

    One that reported comes before one whose pass is only predicted to have ended.
    """
    best = -1
    best_s = math.inf
    for e in range(low, high):
        since_s = ready_since_s(now_s, reported[e], reported_s[e], predicted_end_s[e], out[e])
        if since_s == math.inf:
            continue
        surer = best >= 0 and reported[e] and not reported[best]
        as_sure = best < 0 or reported[e] == reported[best]
        if surer or (as_sure and since_s < best_s):
            best = e
            best_s = since_s
    return best


@kernel
def active_engines(out, low, high):
    """Engines of ``low .. high - 1`` in use."""
    count = 0
    for e in range(low, high):
        if not out[e]:
            count += 1
    return count


@kernel
def watch(now_s, deadlines_s, out, low, high):
    """Take engines out of use whose deadline has passed; return how many were."""
    count = 0
    for e in range(low, high):
        if not out[e] and deadlines_s[e] <= now_s:
            out[e] = True
            count += 1
    return count
