"""How candidates are chosen without a lottery: what safe mixing is compared with."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.sampling.safe_mixing import gains

Ints = NDArray[np.int64]


def best_of_n(helpful: ArrayLike, harmful: ArrayLike) -> Ints:
    """Return each prompt's most helpful candidate, whatever its harm."""
    value, _ = gains(helpful, harmful)
    chosen: Ints = value.argmax(axis=1)
    return chosen


def filtered(helpful: ArrayLike, harmful: ArrayLike, *, threshold: float) -> Ints:
    """Return the most helpful candidate of harm at most ``threshold``; the fallback if there is none.

    Raises:
        InputError: as for ``safe_mixing.mix``, or a threshold outside [0, 1].
    """
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold: must be from 0 to 1, got {threshold}")
    value, _ = gains(helpful, harmful)
    kept = np.atleast_2d(np.asarray(harmful, np.float64)) <= threshold
    kept[:, 0] = True
    chosen: Ints = np.where(kept, value, -2.0).argmax(axis=1)
    return chosen


def weighed(helpful: ArrayLike, harmful: ArrayLike, *, weight: float) -> Ints:
    """Return the candidate of the best helpfulness less ``weight`` times harm.

    Raises:
        InputError: as for ``safe_mixing.mix``, or a weight that is negative or not finite.
    """
    if not (np.isfinite(weight) and weight >= 0.0):
        raise InputError(f"weight: must be finite and not negative, got {weight}")
    value, cost = gains(helpful, harmful)
    chosen: Ints = (value - weight * cost).argmax(axis=1)
    return chosen
