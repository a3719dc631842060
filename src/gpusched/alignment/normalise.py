"""Advantages of sampled answers over their group, objective by objective."""

from typing import Any

import numpy as np

from gpusched.alignment.arrays import as_numpy, like
from gpusched.errors import InputError


def group_advantages(rewards: Any, group_size: int, *, scale: bool = True) -> Any:
    """Return rewards less their group's mean, and over its standard deviation if ``scale``.

    Args:
        rewards: shape (N, n), numpy or torch; nan where an objective does not apply to an answer.
        group_size: answers to the same prompt lie together.

    Returns:
        Advantages of the same kind and shape; nan stays nan, and where all of a group have the same
        reward there is no advantage.

    Raises:
        InputError: rewards of another shape or infinite, or groups that do not divide them.
    """
    r = as_numpy("rewards", rewards)
    if r.ndim != 2 or r.size == 0:
        raise InputError(f"rewards: must have shape (answers, objectives), got {r.shape}")
    if group_size < 1 or len(r) % group_size:
        raise InputError(f"group_size: {group_size} does not divide {len(r)} answers")
    grouped = r.reshape(-1, group_size, r.shape[1])
    there = ~np.isnan(grouped)
    count = np.maximum(there.sum(1, keepdims=True), 1)
    mean = np.where(there, grouped, 0.0).sum(1, keepdims=True) / count
    centred = grouped - mean
    if scale:
        variance = np.where(there, centred**2, 0.0).sum(1, keepdims=True) / np.maximum(count - 1, 1)
        deviation = np.sqrt(variance)
        equal = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-300)
        centred = np.where(equal, 0.0 * centred, centred / np.where(equal, 1.0, deviation))
    return like(centred.reshape(r.shape).astype(r.dtype), rewards)
