"""Makespan of layers whose experts sit on GPUs of their own (FinDEP, arXiv 2512.21487).

A batch is cut into ``r1`` micro-batches and the expert work of each into ``r2`` pieces. In every layer
a micro-batch passes attention (A), then piece by piece the link to the experts, the experts, and the
link back; the shared expert (S) runs on the attention GPUs beside that. Attention GPUs, expert GPUs
and the two directions of the link are one machine each, first in first out. Two orders on the
attention GPUs: ASAS runs A0 S0 A1 S1 ..., AASS runs A0 A1 ... S0 S1 ....
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import entry_kernel, kernel
from gpusched.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Order = Literal["asas", "aass"]

ORDERS: tuple[Order, Order] = ("asas", "aass")
LARGEST_R1 = 64
TOLERANCE = 1e-12
"""Share by which repeated increments may differ."""


class Schedule(NamedTuple):
    """The best cut and order found."""

    candidate: int
    """Index of the micro-batch size and count."""
    r2: int
    order: Order
    makespan_s: float


def makespan_s(
    layers: int, r1: int, r2: int, attention_s: float, shared_s: float, expert_s: float,
    exchange_s: float, order: Order = "asas",
) -> float:  # fmt: skip
    """Return the time until the last task ends, every task as early as possible.

    Times are of one micro-batch (attention, shared expert) or one piece (experts, each direction of
    the link). Once all machines advance alike from layer to layer, the rest is extrapolated, exactly.

    Raises:
        InputError: sizes below 1, r1 above 64, an unknown order, or impossible times.
    """
    if min(layers, r1, r2) < 1 or r1 > LARGEST_R1:
        raise InputError(
            f"layers, r1 and r2 must be at least 1 and r1 at most {LARGEST_R1}, got {layers}, {r1}, {r2}"
        )
    if order not in ORDERS:
        raise InputError(f"order: must be asas or aass, got {order!r}")
    times = {"attention_s": attention_s, "shared_s": shared_s, "expert_s": expert_s,
             "exchange_s": exchange_s}  # fmt: skip
    for name, value in times.items():
        if not 0 <= value < np.inf:
            raise InputError(f"{name}: must be finite and at least 0, got {value:g}")
    work = np.empty((6, LARGEST_R1 + 4))
    t_a, t_s, t_e, t_x = (float(value) for value in times.values())
    return float(simulate(layers, r1, r2, t_a, t_s, t_e, t_x, order == "aass", work))


def asas_makespan_s(
    layers: int, r1: int, r2: int, attention_s: float, shared_s: float, expert_s: float,
    exchange_s: float,
) -> float:  # fmt: skip
    """Return the makespan under ASAS in closed form.

    With X = attention + shared, Y = max(expert, exchange), F = max(X, r2 Y) and a micro-batch's round
    trip G = attention + 2 exchange + expert + (r2 - 1) Y::

        D = (layers - 1) max(G, r1 F) + max(X, G) + (r1 - 1) F

    The paper prints a further (r2 - 1) Y, which G already holds.
    """
    x, y = attention_s + shared_s, max(expert_s, exchange_s)
    f = max(x, r2 * y)
    g = attention_s + 2 * exchange_s + expert_s + (r2 - 1) * y
    return (layers - 1) * max(g, r1 * f) + max(x, g) + (r1 - 1) * f


def best_schedule(
    layers: int, r1: Ints, r2: Ints, attention_s: Floats, shared_s: Floats, expert_s: Floats,
    exchange_s: Floats, weight: Floats, *, aass: bool = True,
) -> Schedule:  # fmt: skip
    """Return the candidate, number of pieces and order with the most ``weight`` per time.

    ``r1``, ``attention_s``, ``shared_s`` and ``weight`` have shape (candidates,), ``expert_s`` and
    ``exchange_s`` shape (candidates, pieces) for the numbers of pieces ``r2`` of shape (pieces,).
    """
    work, found = np.empty((6, LARGEST_R1 + 4)), np.empty(4)
    search(layers, r1, r2, attention_s, shared_s, expert_s, exchange_s, weight, aass, work, found)
    return Schedule(int(found[0]), int(r2[int(found[1])]), ORDERS[int(found[2])], float(found[3]))


@kernel
def simulate_layers(layers, r1, r2, t_a, t_s, t_e, t_x, aass, work):
    """Return the makespan. Rows of ``work``: ends of A, ends of S, state now, one and two layers ago;
    a state is the four machines and the time from which each micro-batch is ready."""
    size = r1 + 4
    for k in range(size):
        work[2, k] = 0.0
    for layer in range(layers):
        for k in range(size):
            work[4, k] = work[3, k]
            work[3, k] = work[2, k]
        ag, up, eg, down = work[2, 0], work[2, 1], work[2, 2], work[2, 3]
        for i in range(r1):
            ag = max(ag, work[2, 4 + i]) + t_a
            work[0, i] = ag
            if not aass:
                ag += t_s
                work[1, i] = ag
        if aass:
            for i in range(r1):
                ag = max(ag, work[0, i]) + t_s
                work[1, i] = ag
        for i in range(r1):
            for _ in range(r2):
                up = max(up, work[0, i]) + t_x
                eg = max(eg, up) + t_e
                down = max(down, eg) + t_x
            work[2, 4 + i] = max(down, work[1, i])
        work[2, 0], work[2, 1], work[2, 2], work[2, 3] = ag, up, eg, down
        left = layers - 1 - layer
        if layer < 2 or left == 0:
            continue
        # the recurrence is linear in the max-plus algebra: increments that are alike stay so
        for period in range(1, 3):
            step = work[2, 0] - work[2 + period, 0]
            alike = left % period == 0
            for k in range(1, size):
                other = work[2, k] - work[2 + period, k]
                alike = alike and abs(other - step) <= TOLERANCE * work[2, k]
            if alike:
                last = 0.0
                for i in range(r1):
                    last = max(last, work[2, 4 + i])
                return last + step * (left // period)
    last = 0.0
    for i in range(r1):
        last = max(last, work[2, 4 + i])
    return last


@entry_kernel
def simulate(layers, r1, r2, t_a, t_s, t_e, t_x, aass, work):
    """Return the makespan of one schedule."""
    return simulate_layers(layers, r1, r2, t_a, t_s, t_e, t_x, aass, work)


@entry_kernel
def search(layers, r1, r2, t_a, t_s, t_e, t_x, weight, aass, work, found):
    """Set the best candidate, index of pieces, order and makespan."""
    best = -1.0
    for i in range(len(r1)):
        x = t_a[i] + t_s[i]
        for j in range(len(r2)):
            y = max(t_e[i, j], t_x[i, j])
            f = max(x, r2[j] * y)
            g = t_a[i] + 2.0 * t_x[i, j] + t_e[i, j] + (r2[j] - 1) * y
            span = (layers - 1) * max(g, r1[i] * f) + max(x, g) + (r1[i] - 1) * f
            if weight[i] > best * span:
                best = weight[i] / span
                found[0], found[1], found[2], found[3] = i, j, 0.0, span
            if not aass or t_s[i] <= 0.0 or r1[i] == 1:
                continue
            # no order beats its busiest machine or a micro-batch's chain
            bound = layers * max(max(r1[i] * x, r1[i] * r2[j] * y), g)
            if weight[i] <= best * bound:
                continue
            span = simulate_layers(
                layers, r1[i], r2[j], t_a[i], t_s[i], t_e[i, j], t_x[i, j], True, work
            )
            if weight[i] > best * span:
                best = weight[i] / span
                found[0], found[1], found[2], found[3] = i, j, 1.0, span
