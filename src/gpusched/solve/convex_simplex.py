"""Convex problems on small simplices, solved in batches by compiled code.

* log-mean-exp: minimise log (1/K) sum_k exp(scale (V w)_k) + smoothing KL(w || uniform);
* quadratic: minimise w Q w / 2 + c w, the least norm of a convex hull among others;
* matrix game: minimise max_k (V w)_k, the first one's limit for an infinite scale.

The quadratic is Wolfe's active set (Mathematical Programming 11, 1976) with a linear term. The
first is damped Newton whose every step is that quadratic, solved exactly; two weights are a
bracketed root. Every answer carries a gap: a proof of how far it can be from the optimum.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.solve.convex_simplex_kernel import log_mean_exp, quadratics
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SimplexOptimum:
    """Optima of a batch of problems."""

    weights: Floats
    """Shape (..., G), on the simplex."""
    value: Floats
    """Of the objective, shape (...)."""
    gap: Floats
    """The objective is at most this far above its minimum; shape (...)."""
    steps: NDArray[np.int64]
    """Newton steps or pivots, shape (...)."""


def log_mean_exp_weights(
    scores: ArrayLike,
    scale: float = 1.0,
    *,
    smoothing: float = 0.0,
    start: ArrayLike | None = None,
    tolerance: float = 1e-9,
) -> SimplexOptimum:
    """Minimise log (1/K) sum_k exp(scale (V w)_k) + smoothing KL(w || uniform) over the simplex.

    Args:
        scores: V, shape (..., K, G).
        scale: positive.
        smoothing: pulls the weights towards uniform ones; in units of the logarithm.
        start: weights to start from, shape (..., G), uniform by default.
        tolerance: of the gap, relative to scale times the spread of a problem's scores.

    Raises:
        InputError: wrong shapes, nothing to choose from, or a figure that is not finite.
    """
    v = _finite("scores", scores, 2)
    *batch, k, g = v.shape
    if k == 0 or g == 0:
        raise InputError(f"scores: shape {v.shape} has no candidates or no objectives")
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"scale: must be positive and finite, got {scale}")
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise InputError(f"smoothing: must be 0 or more and finite, got {smoothing}")
    w = _start(start, (*batch, g))
    count = w.size // g
    value, gap, steps = np.empty(count), np.empty(count), np.empty(count, np.int64)
    log_mean_exp(
        v.reshape(count, k, g), float(scale), float(smoothing), tolerance, w.reshape(count, g),
        value, gap, steps,
    )  # fmt: skip
    shape = tuple(batch)
    return SimplexOptimum(w, value.reshape(shape), gap.reshape(shape), steps.reshape(shape))


def quadratic_weights(quadratic: ArrayLike, linear: ArrayLike | None = None) -> SimplexOptimum:
    """Minimise w Q w / 2 + c w over the simplex.

    Args:
        quadratic: Q, symmetric and positive semidefinite, shape (..., G, G).
        linear: c, shape (..., G), zero by default.

    Raises:
        InputError: wrong shapes, no objectives, or a figure that is not finite.
    """
    q = _finite("quadratic", quadratic, 2)
    *batch, rows, g = q.shape
    if rows != g or g == 0:
        raise InputError(f"quadratic: must be square with at least one row, got shape {q.shape}")
    largest = np.abs(q).max(initial=0.0)
    if np.abs(q - np.swapaxes(q, -1, -2)).max(initial=0.0) > 1e-6 * largest:
        raise InputError("quadratic: not symmetric")
    if (np.diagonal(q, axis1=-2, axis2=-1) < 0).any():
        raise InputError("quadratic: negative on its diagonal, so not positive semidefinite")
    c = np.zeros(q.shape[:-1]) if linear is None else _finite("linear", linear, 1)
    if c.shape != q.shape[:-1]:
        raise InputError(f"linear: must have shape {q.shape[:-1]}, got {c.shape}")
    w = _start(None, (*batch, g))
    count = w.size // g
    value, gap, steps = np.empty(count), np.empty(count), np.empty(count, np.int64)
    quadratics(q.reshape(count, g, g), c.reshape(count, g), w.reshape(count, g), value, gap, steps)
    shape = tuple(batch)
    return SimplexOptimum(w, value.reshape(shape), gap.reshape(shape), steps.reshape(shape))


def min_norm_weights(gram: ArrayLike) -> SimplexOptimum:
    """Return the convex combination of least norm of vectors, given by their inner products.

    ``gram`` has shape (..., G, G); ``value`` is the squared norm.

    Raises:
        InputError: as ``quadratic_weights``.
    """
    found = quadratic_weights(gram)
    return SimplexOptimum(found.weights, 2.0 * found.value, 2.0 * found.gap, found.steps)


@dataclass(frozen=True, slots=True)
class MatrixGame:
    """Optimal strategies of a zero-sum game and its value."""

    weights: Floats
    """Of the player who pays, over columns."""
    mix: Floats
    """Of the player who is paid, over rows."""
    value: float


def matrix_game(payoff: ArrayLike) -> MatrixGame:
    """Solve min over column mixes, max over rows of a payoff matrix (K, G), by linear programming.

    Raises:
        InputError: not a matrix, empty, or a figure that is not finite.
    """
    v = _finite("payoff", payoff, 2)
    if v.ndim != 2 or 0 in v.shape:
        raise InputError(f"payoff: must be a matrix that is not empty, got shape {v.shape}")
    weights, value = _pure_side(v)
    mix, _ = _pure_side(-v.T)
    return MatrixGame(weights, mix, value)


def _pure_side(v: Floats) -> tuple[Floats, float]:
    k, g = v.shape
    program = Program()
    w = program.variables(g)
    bound = program.variables(1, cost=1.0, lower=-np.inf)
    program.row(w, lower=1.0, upper=1.0)
    program.rows(
        np.arange(k)[:, None],
        np.append(w, bound)[None, :],
        np.hstack([v, -np.ones((k, 1))]),
        upper=0.0,
    )
    solution = program.solve()
    weights = np.maximum(solution.values[:g], 0.0)
    return weights / weights.sum(), solution.objective


def _finite(name: str, values: ArrayLike, axes: int) -> Floats:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: not an array of numbers ({error})") from None
    if array.ndim < axes:
        raise InputError(f"{name}: needs at least {axes} axes, got shape {array.shape}")
    if not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InputError(f"{name}: must be finite, got {array[at]} at {at}")
    return np.ascontiguousarray(array)


def _start(start: ArrayLike | None, shape: tuple[int, ...]) -> Floats:
    if start is None:
        return np.full(shape, 1.0 / shape[-1])
    w = _finite("start", start, 1)
    try:
        w = np.broadcast_to(w, shape).copy()
    except ValueError:
        raise InputError(f"start: must have shape {shape}, got {w.shape}") from None
    if (w < 0).any() or not np.allclose(w.sum(-1), 1.0, atol=1e-6):
        raise InputError("start: weights must be 0 or more and add up to 1")
    return np.asarray(w / w.sum(-1, keepdims=True))
