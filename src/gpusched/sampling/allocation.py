"""Which model answers next, so that every model's share stays true to its weight."""

from collections.abc import Sequence

import numpy as np

from gpusched.errors import InputError


def checked_weights(weights: Sequence[float], models: int) -> tuple[float, ...]:
    """Return weights scaled to sum to one.

    Raises:
        InputError: not one for each model, negative, not finite, or all zero.
    """
    values = np.asarray(weights, float)
    if values.shape != (models,):
        raise InputError(f"weights: expected one for each of {models} models, got {len(weights)}")
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise InputError(
            f"weights: must be finite, not negative and not all zero, got {list(weights)}"
        )
    return tuple(float(value) for value in values / values.sum())


class Allocation:
    """Chooses models by largest remainder: after n choices each was chosen within one of n times
    its weight (for two models; within the number of models less one for more).

    The votes' mean shares are those of independent draws, their variance is lower.
    """

    def __init__(self, weights: Sequence[float], *, seed: int | None = None) -> None:
        self.weights = list(checked_weights(weights, len(weights)))
        start = np.random.default_rng(seed).random() if seed is not None else 0.0
        """A common shift, so that prompts do not all begin with the same model."""
        self.owed = [start * weight for weight in self.weights]

    def next(self) -> int:
        """Return the model to ask."""
        for model, weight in enumerate(self.weights):
            self.owed[model] += weight
        chosen = max(range(len(self.owed)), key=self.owed.__getitem__)
        self.owed[chosen] -= 1.0
        return chosen

    def drop(self, model: int) -> bool:
        """Leave a model out from now on; false where none is left."""
        self.weights[model], self.owed[model] = 0.0, float("-inf")
        total = sum(self.weights)
        if total <= 0.0:
            return False
        self.weights = [weight / total for weight in self.weights]
        return True
