"""The best packing of a window of prompts onto data-parallel units: what no greedy rule can beat.

The tokens of the busiest unit are minimised: makespan on unrelated machines, since cache hits make a
request's cost differ between units. Solved as a mixed-integer program on HiGHS.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BalancedPacking:
    """An assignment and what is known of its quality."""

    unit: Ints
    """Unit of each request, shape (requests,)."""
    loads: Ints
    """Tokens of each unit, what was queued there included, shape (units,)."""
    bound: float
    """No assignment's busiest unit has less."""

    @property
    def makespan(self) -> int:
        """Tokens of the busiest unit."""
        return int(self.loads.max())

    @property
    def proven(self) -> bool:
        """Whether no assignment is better: tokens are whole."""
        return self.makespan < self.bound + 1.0 - 1e-6


def longest_first_ratio(units: int) -> float:
    """Return the most by which longest-first greedy exceeds the optimum on equal, empty units."""
    return 4.0 / 3.0 - 1.0 / (3.0 * units)


def unit_loads(uncached: Ints, queued: Ints, unit: Ints) -> Ints:
    """Return the tokens of each unit under an assignment."""
    loads = queued.copy()
    np.add.at(loads, unit, uncached[np.arange(len(unit)), unit])
    return loads


def balanced_packing(
    lengths: ArrayLike,
    hits: ArrayLike,
    queued: ArrayLike,
    *,
    gap: float = 0.0,
    time_limit_s: float = 10.0,
) -> BalancedPacking:
    """Return the best assignment found and a bound.

    ``lengths`` of shape (requests,), ``hits`` the tokens of each cached on each unit of shape
    (requests, units), ``queued`` the tokens each unit has already of shape (units,). The search
    ends once the makespan is within ``gap`` times itself of the bound, or at the time limit.

    Raises:
        InputError: shapes disagree, or tokens are negative.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    length, hit, waiting = (np.asarray(a, np.int64) for a in (lengths, hits, queued))
    n, units = len(length), len(waiting)
    if hit.shape != (n, units):
        raise InputError(
            f"hits need one row a request and one column a unit, {n} x {units}, got "
            f"{' x '.join(map(str, hit.shape))}"
        )
    if not units or min(length.min(initial=0), hit.min(initial=0), waiting.min(initial=0)) < 0:
        raise InputError("packing needs a unit, and tokens that are not negative")
    uncached = np.maximum(length[:, None] - hit, 0)
    incumbent = _greedy(uncached, waiting)
    if n == 0:
        return BalancedPacking(incumbent, waiting, float(waiting.max()))
    # columns: y[r, u] row by row, then the makespan
    cells = np.arange(n * units)
    once = coo_array((np.ones(n * units), (cells // units, cells)), (n, n * units + 1))
    level = coo_array(
        (
            np.concatenate((uncached.ravel(), np.full(units, -1.0))),
            (
                np.concatenate((cells % units, np.arange(units))),
                np.concatenate((cells, np.full(units, n * units))),
            ),
        ),
        (units, n * units + 1),
    )
    cost = np.zeros(n * units + 1)
    cost[-1] = 1.0
    best = int(unit_loads(uncached, waiting, incumbent).max())
    upper = np.ones(n * units + 1)
    upper[-1] = best
    integral = np.ones(n * units + 1, np.int64)
    integral[-1] = 0
    lower = np.zeros(n * units + 1)
    lower[-1] = max(waiting.max(), uncached.min(axis=1).max())
    answer = milp(
        cost,
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(level, -np.inf, -waiting)],
        integrality=integral,
        bounds=Bounds(lower, upper),
        options={"time_limit": time_limit_s, "mip_rel_gap": gap},
    )
    bound = answer.mip_dual_bound if answer.mip_dual_bound is not None else lower[-1]
    unit = incumbent
    if answer.x is not None:
        found = answer.x[:-1].reshape(n, units).argmax(axis=1)
        if unit_loads(uncached, waiting, found).max() < best:
            unit = found
    return BalancedPacking(unit, unit_loads(uncached, waiting, unit), float(bound))


def _greedy(uncached: Ints, queued: Ints) -> Ints:
    """Each request, costliest first, on the unit that is then least loaded."""
    loads = queued.copy()
    unit = np.zeros(len(uncached), np.int64)
    for r in np.argsort(-uncached.min(axis=1), kind="stable"):
        unit[r] = np.argmin(loads + uncached[r])
        loads[unit[r]] += uncached[r, unit[r]]
    return unit
