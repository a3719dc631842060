"""Gates: which class's first waiting request starts its prefill when a prefill slot is idle.

The gate of Gate-and-Route (arXiv 2602.02987, Section 4) keeps the prefills of each class at the
occupancy of a fluid plan. As published it never idles a slot, so it takes a class beyond its
target whenever no other waits. Two stricter ones hold back classes that the plan serves only in
part (``metered``): one by a cap on their prefills, one by credits that accrue at the planned rate
(a token bucket), which works also where the cap is below one request.

Arrays have an entry a class; ``targets`` are planned prefills in service, of the whole cluster.
"""

import math

from gpusched.compilation import kernel

FIRST_COME, OCCUPANCY, CAPPED, CREDIT, PRIORITY = range(5)

GATES = {
    "first-come": FIRST_COME,
    "occupancy": OCCUPANCY,
    "capped": CAPPED,
    "credit": CREDIT,
    "priority": PRIORITY,
}

NONE = -1
"""No class may start."""
WHOLE = 1.0 - 1e-9
"""A credit this large admits a request, so that rounding does not decide."""


@kernel
def excess(in_prefill, target):
    """How far a class is beyond its planned prefills, relative to them."""
    return (in_prefill - target) / target if target > 0.0 else math.inf


@kernel
def may_start(gate, i, in_prefill, targets, metered, credits):
    """Whether the gate lets a waiting request of class ``i`` start at all."""
    if gate == CAPPED and metered[i]:
        return targets[i] > 0.0 and in_prefill[i] <= targets[i]
    if gate == CREDIT and metered[i]:
        return credits[i] >= WHOLE
    return True


@kernel
def most_behind(gate, waiting, in_prefill, targets, queue_targets, metered, credits, n_classes):
    """The waiting class that is the furthest behind its target among those that may start; equals
    go to the longer queue relative to plan, then to the lower index."""
    best = NONE
    best_excess = math.inf
    best_queue = -math.inf
    for i in range(n_classes):
        if waiting[i] > 0 and may_start(gate, i, in_prefill, targets, metered, credits):
            own = excess(in_prefill[i], targets[i])
            queue = waiting[i] - queue_targets[i]
            if own < best_excess or (own == best_excess and queue > best_queue):
                best = i
                best_excess = own
                best_queue = queue
    return best


@kernel
def gate_class(waiting, in_prefill, targets, queue_targets, n_classes):
    """The gate as published: the class to start, or -1 if none waits.

    A class without planned prefills starts only if no other waits.
    """
    return most_behind(
        OCCUPANCY, waiting, in_prefill, targets, queue_targets, waiting, targets, n_classes
    )


@kernel
def capped_class(waiting, in_prefill, targets, queue_targets, metered, n_classes):
    """The gate with a cap: a metered class starts only up to one request beyond its target, and
    never if its target is 0."""
    return most_behind(
        CAPPED, waiting, in_prefill, targets, queue_targets, metered, targets, n_classes
    )


@kernel
def credit_class(waiting, in_prefill, targets, queue_targets, metered, credits, n_classes):
    """The gate with credits: a metered class starts only for a whole credit, which the caller
    takes off."""
    return most_behind(
        CREDIT, waiting, in_prefill, targets, queue_targets, metered, credits, n_classes
    )


@kernel
def accrue(credits, rates_rps, burst, elapsed_s, n_classes):
    """Add the credits of ``elapsed_s`` seconds, up to ``burst`` a class."""
    for i in range(n_classes):
        credits[i] = min(credits[i] + rates_rps[i] * elapsed_s, burst)


@kernel
def credit_wait_s(waiting, metered, credits, rates_rps, n_classes):
    """Seconds until a waiting metered class has a whole credit; infinite if none ever will."""
    wait_s = math.inf
    for i in range(n_classes):
        if waiting[i] > 0 and metered[i] and rates_rps[i] > 0.0:
            wait_s = min(wait_s, max(1.0 - credits[i], 0.0) / rates_rps[i])
    return wait_s


@kernel
def priority_class(waiting, priorities, n_classes):
    """The waiting class of highest priority, or -1; equals go to the lower index.

    Prioritize-and-Route ranks by output tokens a prompt token.
    """
    best = NONE
    for i in range(n_classes):
        if waiting[i] > 0 and (best == NONE or priorities[i] > priorities[best]):
            best = i
    return best


@kernel
def first_come_class(waiting, head_arrival_s, n_classes):
    """The class whose first waiting request arrived first, or -1."""
    best = NONE
    for i in range(n_classes):
        if waiting[i] > 0 and (best == NONE or head_arrival_s[i] < head_arrival_s[best]):
            best = i
    return best


@kernel
def choose_class(
    gate,
    waiting,
    head_arrival_s,
    in_prefill,
    targets,
    queue_targets,
    metered,
    credits,
    priorities,
    n_classes,
):
    """The class to start under any of the gates, or -1."""
    if gate == FIRST_COME:
        return first_come_class(waiting, head_arrival_s, n_classes)
    if gate == PRIORITY:
        return priority_class(waiting, priorities, n_classes)
    return most_behind(
        gate, waiting, in_prefill, targets, queue_targets, metered, credits, n_classes
    )
