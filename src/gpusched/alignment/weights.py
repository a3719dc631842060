"""Weights of objectives for a whole batch, by rule."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.solve.convex_simplex import min_norm_weights

Floats = NDArray[np.float64]


def given_weights(name: str, weights: ArrayLike | None, objectives: int) -> Floats:
    """Return weights that add up to 1, equal ones by default.

    Raises:
        InputError: another number of them, negative, not finite, or all zero.
    """
    w = np.ones(objectives) if weights is None else np.asarray(weights, np.float64)
    if w.shape != (objectives,):
        raise InputError(f"{name}: must have shape ({objectives},), got {w.shape}")
    if not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise InputError(f"{name}: must be finite, 0 or more, and not all 0; got {w.tolist()}")
    return np.asarray(w / w.sum())


def tchebycheff(levels: Any, ideal: Any, weights: Floats, augmentation: float = 0.05) -> Floats:
    """Return the weights of the augmented Tchebycheff problem: on the objective farthest below its
    ideal, by weight, and a little on all.

    Raises:
        InputError: no levels or ideals, or of another shape.
    """
    z, best = (_vector(n, v, len(weights)) for n, v in (("levels", levels), ("ideal", ideal)))
    chosen = np.eye(len(weights))[(weights * (best - z)).argmax()]
    return np.asarray((chosen + augmentation * weights) / (1.0 + augmentation))


def lagrangian(multipliers: Any, objectives: int) -> Floats:
    """Return the weights of the first objective under constraints on the others (Safe-RLHF).

    Raises:
        InputError: not one multiplier a constraint, or a negative one.
    """
    mu = _vector("multipliers", multipliers, objectives - 1)
    if (mu < 0).any():
        raise InputError(f"multipliers: must be 0 or more, got {mu.tolist()}")
    return np.asarray(np.append(1.0, mu) / (1.0 + mu.sum()))


def next_multipliers(
    multipliers: ArrayLike, levels: ArrayLike, floors: ArrayLike, rate: float
) -> Floats:
    """Return the multipliers after a dual step: up where a mean reward is below its floor."""
    mu, z, least = (np.asarray(v, np.float64) for v in (multipliers, levels, floors))
    return np.asarray(np.maximum(mu + rate * (least - z), 0.0))


def mgda(gram: Any, objectives: int) -> Floats:
    """Return the combination of gradients of least norm (MGDA; MGDA-UB for those of activations).

    Raises:
        InputError: no Gram matrix of the gradients, or not symmetric of that size.
    """
    return min_norm_weights(_gram(gram, objectives)).weights


def gapo(gram: Any, objectives: int) -> Floats:
    """Return MGDA's weights for gradients scaled to length 1, so that short ones do not dominate.

    Raises:
        InputError: as ``mgda``.
    """
    g = _gram(gram, objectives)
    length = np.sqrt(np.maximum(np.diag(g), 1e-300))
    w = min_norm_weights(g / np.outer(length, length)).weights / length
    return np.asarray(w / w.sum())


def _gram(gram: Any, objectives: int) -> Floats:
    if gram is None:
        raise InputError(
            "gram: this mode needs the objectives' gradients; give their inner products"
        )
    g = np.asarray(gram, np.float64)
    if g.shape != (objectives, objectives):
        raise InputError(f"gram: must have shape ({objectives}, {objectives}), got {g.shape}")
    return g


def _vector(name: str, values: Any, size: int) -> Floats:
    if values is None:
        raise InputError(f"{name}: this mode needs {size} figures")
    v = np.asarray(values, np.float64)
    if v.shape != (size,) or not np.isfinite(v).all():
        raise InputError(f"{name}: must be {size} finite figures, got {v.tolist()}")
    return v
