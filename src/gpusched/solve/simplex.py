"""Small programs over the probability simplex, thousands at a time."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@njit(cache=True, error_model="numpy", nogil=True)
def capped_mixes(values, costs, caps, first, second, share, price):
    """Solve ``max values . w, costs . w <= cap, w in the simplex`` for each row.

    Two rows bind, so some optimum mixes at most two columns: the ends of the edge of the upper
    concave hull of the points (cost, value) that crosses the cap. The edge is found as by the
    simplex method: of all columns, the one highest above the line through the present two replaces
    the one on its side of the cap.

    Writes for each row ``w = share`` on column ``first`` (within the cap), the rest on ``second``,
    and the slope there as the cap's ``price``: zero where the cap is slack. ``first`` is -1 where
    no column is within the cap. Shapes: values, costs (rows, columns); others (rows,).
    """
    for r in range(values.shape[0]):
        cap = caps[r]
        low = -1
        high = -1
        for k in range(values.shape[1]):
            v, c = values[r, k], costs[r, k]
            if c <= cap and (
                low < 0 or v > values[r, low] or (v == values[r, low] and c < costs[r, low])
            ):
                low = k
        first[r], second[r], share[r], price[r] = low, low, 1.0, 0.0
        if low < 0:
            continue
        # Any column beyond the cap that is worth more; the loop then finds the right one.
        for k in range(values.shape[1]):
            if (
                costs[r, k] > cap
                and values[r, k] > values[r, low]
                and (high < 0 or values[r, k] > values[r, high])
            ):
                high = k
        if high < 0:
            continue
        slope = 0.0
        for _ in range(2 * values.shape[1]):
            slope = (values[r, high] - values[r, low]) / (costs[r, high] - costs[r, low])
            base = values[r, low] - slope * costs[r, low]
            scale = abs(values[r, low]) + abs(values[r, high]) + abs(slope * costs[r, high])
            above = 1e-15 * scale
            best = -1
            for k in range(values.shape[1]):
                height = values[r, k] - slope * costs[r, k] - base
                if height > above:
                    above = height
                    best = k
            if best < 0:
                break
            if costs[r, best] <= cap:
                low = best
            else:
                high = best
        span = costs[r, high] - costs[r, low]
        first[r], second[r], price[r] = low, high, slope
        share[r] = (costs[r, high] - cap) / span
        # Rounding must not break the cap; doubling steps, since a tiny share has tiny neighbours.
        step = 2.0**-53
        while share[r] < 1.0 and share[r] * costs[r, low] + (1.0 - share[r]) * costs[r, high] > cap:
            share[r] = min(1.0, share[r] + step)
            step *= 2.0


def capped_mix(
    values: Floats, costs: Floats, caps: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """Return first, second, share and price of :func:`capped_mixes`; nothing is checked."""
    rows = len(values)
    first, second = np.empty(rows, np.int64), np.empty(rows, np.int64)
    share, price = np.empty(rows), np.empty(rows)
    capped_mixes(values, costs, caps, first, second, share, price)
    return first, second, share, price
