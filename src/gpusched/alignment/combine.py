"""One advantage from several: Pareto alignment (PAMA, arXiv 2508.07768) and its alternatives.

========================  =====================================================================
``token``                 each token's advantages combined to least size: their least, under Noon
``batch_qp``              one combination for the batch, of least norm as vectors over its tokens
``batch_scalar``          that of the objectives' mean advantages, the same for every token
``linear``                fixed weights
``tchebycheff``           most weight on the objective farthest below its ideal
``softmin``               -(1/k) log mean exp(-k advantage)
``lagrangian``            the first objective, with multipliers on the others
``gdpo``                  the sum of normalised advantages, normalised again over the batch
``mgda``, ``mgda_ub``     least norm of the gradients, by parameter or by activation
``gapo``                  ``mgda`` of gradients scaled to length 1
========================  =====================================================================

Noon ("no negative") drops negative advantages before they are combined. It is how the paper has it,
and the default of the two modes taken from it; the others do without.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.alignment.arrays import Array, as_numpy, like
from gpusched.alignment.projection import moments, project
from gpusched.alignment.weights import gapo, given_weights, lagrangian, mgda, tchebycheff
from gpusched.errors import InputError, unknown_name
from gpusched.solve.convex_simplex import min_norm_weights

Floats = NDArray[np.float64]
Mode = Literal[
    "token", "batch_qp", "batch_scalar", "linear", "tchebycheff", "softmin", "lagrangian", "gdpo",
    "mgda", "mgda_ub", "gapo",
]  # fmt: skip
MODES: tuple[str, ...] = get_args(Mode)
NOON = ("token", "batch_scalar")
OF_GRADIENTS = ("mgda", "mgda_ub", "gapo")


@dataclass(frozen=True, slots=True)
class Combined:
    """Advantages to train with, and which objective they come from."""

    advantages: Any
    """Shape (B, T) or (B,), of the kind of those given; 0 where masked."""
    weights: Floats
    """Of the objectives, shape (n,); their mean over tokens where each has its own."""
    binding: Floats
    """Share of the tokens whose advantage is one objective's alone, shape (n,); batch modes: the
    weights."""
    stalled: float
    """Share of the tokens left without an advantage."""


def combine(
    advantages: Any,
    mask: Any = None,
    ratio: Any = None,
    mode: Mode = "token",
    *,
    noon: bool | None = None,
    normalise: bool = True,
    clip: float = 0.2,
    weights: ArrayLike | None = None,
    softness: float = 4.0,
    levels: Any = None,
    ideal: Any = None,
    multipliers: Any = None,
    gram: Any = None,
) -> Combined:
    """Combine advantages of n objectives into one a token.

    Args:
        advantages: shape (B, T, n) or (B, n), numpy or torch; nan where an objective does not apply.
        mask: tokens that count, shape (B, T) or (B,); all by default.
        ratio: of the new to the old probability; under Noon, tokens beyond 1 + clip get nothing.
        mode: see the module.
        noon: drop negative advantages first; by default as the mode has it.
        normalise: divide by each objective's standard deviation over the batch. All modes but
            ``gdpo`` depend on the objectives' scales.
        clip: of the ratio.
        weights: of ``linear`` and ``tchebycheff``, equal by default.
        softness: k of ``softmin``; the greater, the nearer to the least.
        levels: mean reward of each objective (``tchebycheff``).
        ideal: the mean rewards one would wish for (``tchebycheff``).
        multipliers: of the constraints, one less than objectives (``lagrangian``).
        gram: inner products of the objectives' gradients, shape (n, n) (``mgda``, ``gapo``).

    Raises:
        InputError: an argument of a wrong shape or value, or one that the mode needs is missing.
    """
    if mode not in MODES:
        raise InputError(unknown_name("mode", str(mode), MODES))
    a = as_numpy("advantages", advantages)
    if a.ndim not in (2, 3) or a.size == 0:
        raise InputError(
            f"advantages: must have shape (B, T, n) or (B, n) and not be empty, got {a.shape}"
        )
    n = a.shape[-1]
    noon = mode in NOON if noon is None else noon
    flat = np.ascontiguousarray(a.reshape(-1, n))
    keep = _kept(mask, a.shape[:-1])
    factor = np.ones(n)
    if normalise or mode == "gdpo":
        count, _, square = moments(flat, keep)
        deviation = np.sqrt(square / np.maximum(count - 1.0, 1.0))
        factor = np.where(deviation > 0, 1.0 / np.where(deviation > 0, deviation, 1.0), 1.0)
    if ratio is not None and noon:
        u = as_numpy("ratio", ratio)
        if u.shape != a.shape[:-1]:
            raise InputError(f"ratio: must have shape {a.shape[:-1]}, got {u.shape}")
        within = (u <= 1.0 + clip).ravel()
    else:
        within = np.ones(len(flat), np.bool_)
    batch: Floats | None = None
    if mode == "token":
        found, mean_weights, binding, stalled = _token(flat, keep & within, factor, noon)
        stalled = 1.0 - (1.0 - stalled) * (keep & within).sum() / max(keep.sum(), 1)
    else:
        x = _prepared(flat, keep & within, factor, noon)
        if mode == "softmin":
            found = _softmin(x, softness)
        elif mode == "gdpo":
            found = _standardised(x.sum(1, dtype=np.float64), keep)
        elif mode == "batch_scalar":
            found, batch = _of_means(x, keep)
        else:
            batch = _batch_weights(mode, x, weights, levels, ideal, multipliers, gram)
            found = x @ batch.astype(x.dtype)
        found = np.where(keep, found, 0.0)
        stalled = float((found[keep] == 0).mean()) if keep.any() else 1.0
        mean_weights = binding = np.full(n, 1.0 / n) if batch is None else batch
    answer = found.astype(a.dtype, copy=False).reshape(a.shape[:-1])
    return Combined(like(answer, advantages), mean_weights, binding, float(stalled))


def _kept(mask: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    if mask is None:
        return np.ones(int(np.prod(shape)), np.bool_)
    m = as_numpy("mask", mask)
    if m.shape != shape:
        raise InputError(f"mask: must have shape {shape}, got {m.shape}")
    return np.asarray(m.ravel() > 0)


def _token(
    flat: Array, keep: NDArray[np.bool_], factor: Floats, noon: bool
) -> tuple[Any, Floats, Floats, float]:
    n = flat.shape[1]
    found, weights, binds = np.empty(len(flat), flat.dtype), np.zeros(n), np.zeros(n)
    kept, stalled = project(flat, keep, factor.astype(flat.dtype), noon, found, weights, binds)
    kept = max(kept, 1)
    return found, weights / kept, binds / kept, stalled / kept


def _prepared(flat: Array, keep: NDArray[np.bool_], factor: Floats, noon: bool) -> Any:
    x = np.nan_to_num(flat * factor.astype(flat.dtype), copy=False, nan=0.0)
    if noon:
        np.maximum(x, 0.0, out=x)
    x[~keep] = 0.0
    return x


def _batch_weights(
    mode: str, x: Any, weights: Any, levels: Any, ideal: Any, multipliers: Any, gram: Any
) -> Floats:
    n = x.shape[1]
    if mode == "batch_qp":
        return min_norm_weights((x.T @ x).astype(np.float64)).weights
    if mode == "linear":
        return given_weights("weights", weights, n)
    if mode == "tchebycheff":
        return tchebycheff(levels, ideal, given_weights("weights", weights, n))
    if mode == "lagrangian":
        return lagrangian(multipliers, n)
    return gapo(gram, n) if mode == "gapo" else mgda(gram, n)


def _softmin(x: Any, softness: float) -> Any:
    if not (np.isfinite(softness) and softness > 0):
        raise InputError(f"softness: must be positive and finite, got {softness}")
    least = x.min(1)
    return least - np.log(np.exp(-softness * (x - least[:, None])).mean(1)) / softness


def _standardised(total: Floats, keep: NDArray[np.bool_]) -> Floats:
    kept = total[keep]
    if len(kept) < 2 or kept.std() == 0:
        return np.zeros_like(total)
    return np.asarray((total - kept.mean()) / kept.std(ddof=1))


def _of_means(x: Any, keep: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    means = x.sum(0, dtype=np.float64)[None] / max(keep.sum(), 1)
    n = x.shape[1]
    found, weights, binds = np.empty(1), np.zeros(n), np.zeros(n)
    project(means, np.ones(1, np.bool_), np.ones(n), False, found, weights, binds)
    return np.full(len(x), found[0]), weights
