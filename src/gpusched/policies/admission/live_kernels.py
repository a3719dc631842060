"""Decisions of a gate as live code calls them."""

import math

from gpusched.compilation import entry_kernel
from gpusched.policies.admission.gate import CREDIT, accrue, choose_class, credit_wait_s


@entry_kernel
def next_class(
    gate, waiting, head_arrival_s, in_prefill, targets, queue_targets, metered, credits, priorities
):
    """The class whose first waiting request starts now, or -1."""
    return choose_class(
        gate, waiting, head_arrival_s, in_prefill, targets, queue_targets, metered, credits,
        priorities, len(waiting),
    )  # fmt: skip


@entry_kernel
def add_credits(credits, rates_rps, burst, elapsed_s):
    """Add the credits of some seconds."""
    accrue(credits, rates_rps, burst, elapsed_s, len(credits))


@entry_kernel
def until_credit_s(gate, waiting, metered, credits, rates_rps):
    """Seconds until a waiting class may start for a credit; infinite if none will."""
    if gate != CREDIT:
        return math.inf
    return credit_wait_s(waiting, metered, credits, rates_rps, len(waiting))
