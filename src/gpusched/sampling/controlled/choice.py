"""Which of several candidate blocks to keep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.sampling.controlled.strategy import ControlledDecoding
from gpusched.sampling.controlled.weights import robust_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidates chosen for a batch of prompts."""

    index: NDArray[np.int64]
    """Of the candidate, shape (...)."""
    weights: Floats
    """Of the objectives, shape (..., G); under ``maximin``, all on the chosen one's worst."""
    gap: Floats
    """Certificate of the weights, shape (...); 0 where none were solved for."""


def choose(
    values: ArrayLike,
    settings: ControlledDecoding,
    *,
    start: Floats | None = None,
    rng: np.random.Generator | None = None,
) -> Choice:
    """Choose a candidate by values of shape (..., K, G); ties go to the first.

    Raises:
        InputError: wrong shapes, or a value that is not finite.
    """
    v = checked_values(values, len(settings.objectives))
    if settings.calibration is not None:
        known = np.array([settings.calibration[name] for name in settings.objectives])
        v = (v - known[:, 0]) / known[:, 1]
    batch, g = v.shape[:-2], v.shape[-1]
    none = np.zeros(batch)
    if settings.rule == "fixed" or g == 1:
        weights = np.broadcast_to(np.array(settings.fixed_weights), (*batch, g)).copy()
        return Choice(_best(v, weights), weights, none)
    if settings.rule == "maximin":
        index = v.min(-1).argmax(-1)
        chosen = np.take_along_axis(v, index[..., None, None], -2)[..., 0, :]
        return Choice(index, np.eye(g)[chosen.argmin(-1)], none)
    found = robust_weights(
        v, settings.strength, smoothing=settings.smoothing, start=start,
        paper_iterations=settings.paper_iterations,
    )  # fmt: skip
    if settings.rule == "robust-sample":
        rng = rng or np.random.default_rng(settings.seed)
        steps = found.mix.cumsum(-1)
        index = (steps < rng.random(batch)[..., None] * steps[..., -1:]).sum(-1)
    else:
        index = _best(v, found.weights)
    return Choice(index, found.weights, found.gap)


def checked_values(values: ArrayLike, objectives: int, candidates: int | None = None) -> Floats:
    """Return values as an array of shape (..., K, G).

    Raises:
        InputError: not that shape, no candidates, or a value that is not finite.
    """
    try:
        v = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"values: not an array of numbers ({error})") from None
    rows = "candidates" if candidates is None else str(candidates)
    if v.ndim < 2 or v.shape[-1] != objectives or candidates not in (None, v.shape[-2]):
        raise InputError(f"values: must have shape ({rows}, {objectives}), got {v.shape}")
    if v.shape[-2] == 0:
        raise InputError("values: no candidates to choose from")
    if not np.isfinite(v).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(v))[0])
        raise InputError(
            f"values: candidate {at[-2]}, objective {at[-1]}: must be finite, got {v[at]}"
        )
    return v


def _best(v: Floats, weights: Floats) -> NDArray[np.int64]:
    return np.asarray(np.einsum("...kg,...g->...k", v, weights).argmax(-1))
