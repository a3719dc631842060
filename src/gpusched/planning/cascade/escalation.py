"""Which requests of a sample reach which model, and how good the answers are.

A request starts at the smallest model; while a judge scores the answer below the stage's threshold,
it moves on to the next (Cascadia, arXiv 2506.04203).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]
MAX_POINTS = 2_000_000


@dataclass(frozen=True, slots=True)
class Escalation:
    """Threshold vectors and what they do to a sample of requests."""

    thresholds: Floats
    """Shape (vectors, models - 1)."""
    reach: Floats
    """Share of the requests that reach each model, shape (vectors, models)."""
    quality: Floats
    """Mean score of the accepted answers, shape (vectors,)."""

    def take(self, rows: NDArray[np.int64]) -> "Escalation":
        """Return some of the vectors."""
        return Escalation(self.thresholds[rows], self.reach[rows], self.quality[rows])


def escalate(scores: ArrayLike, thresholds: ArrayLike) -> Escalation:
    """Return reach and quality of threshold vectors.

    ``scores`` has shape (requests, models), models from small to large; an answer is accepted if its
    score is at least the threshold.

    Raises:
        InputError: shapes do not match, or a score is not a number.
    """
    table = checked_scores(scores)
    vectors = np.atleast_2d(np.asarray(thresholds, np.float64))
    requests, models = table.shape
    if vectors.shape[1] != models - 1:
        raise InputError(
            f"thresholds: {vectors.shape[1]} a vector, but {models} models have {models - 1} stages "
            "that can pass a request on"
        )
    reach = np.ones((len(vectors), models))
    quality = np.zeros(len(vectors))
    chunk = max(1, MAX_POINTS // requests)
    for first in range(0, len(vectors), chunk):
        rows = slice(first, first + chunk)
        going = np.ones((len(vectors[rows]), requests), bool)
        total = np.zeros(len(vectors[rows]))
        for model in range(models):
            reach[rows, model] = going.mean(axis=1)
            stays = going.copy()
            if model < models - 1:
                stays &= table[None, :, model] >= vectors[rows, model, None]
            total += stays @ table[:, model]
            going &= ~stays
        quality[rows] = total / requests
    return Escalation(vectors, reach, quality)


def candidate_thresholds(scores: ArrayLike, per_stage: int = 24) -> Floats:
    """Return a grid of threshold vectors: never pass on, quantiles of the scores, always pass on."""
    table = checked_scores(scores)
    stages = []
    for model in range(table.shape[1] - 1):
        values = np.unique(table[:, model])
        if len(values) > per_stage:
            values = np.unique(np.quantile(values, np.linspace(0, 1, per_stage), method="nearest"))
        stages.append(np.concatenate((values, [np.nextafter(values[-1], np.inf)])))
    grid = np.meshgrid(*stages, indexing="ij")
    return np.stack([axis.ravel() for axis in grid], axis=1) if grid else np.zeros((1, 0))


def undominated(found: Escalation) -> NDArray[np.int64]:
    """Return the vectors that no other beats: as good or better with no more requests at any model.

    What a model costs grows with the requests that reach it, so no dominated vector is ever needed.
    """
    order = np.lexsort((*found.reach.T[::-1], -found.quality))
    kept: list[int] = []
    for row in order:
        if kept:
            better = (found.reach[kept] <= found.reach[row] + 1e-12).all(axis=1)
            if better.any():
                continue
        kept.append(int(row))
    return np.array(kept, np.int64)


def checked_scores(scores: ArrayLike) -> Floats:
    """Return scores as an array.

    Raises:
        InputError: the array is not (requests, models), is empty, or holds no numbers.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or not table.size:
        raise InputError(f"scores: expected a table of (requests, models), got shape {table.shape}")
    if not np.isfinite(table).all():
        row, model = np.argwhere(~np.isfinite(table))[0]
        raise InputError(f"scores: request {row}, model {model} has no finite score")
    return table
