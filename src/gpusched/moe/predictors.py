"""What a step's expert counts are taken to be before its routers have run."""

from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]


class Predictor(Protocol):
    """Predicts counts of shape (experts, ranks) for one layer, step after step."""

    def predict(self, actual: Floats) -> Floats | None:
        """Return the prediction of this step, or None before there is one. ``actual`` are the counts
        to come, for predictors that stand for a model of known accuracy."""

    def observe(self, actual: Floats) -> None:
        """Learn this step's counts."""


class Oracle:
    """Knows the counts."""

    def predict(self, actual: Floats) -> Floats | None:
        """Return the truth."""
        return actual

    def observe(self, actual: Floats) -> None:
        """Learn nothing."""


class LastStep:
    """Takes this step for the last one."""

    def __init__(self) -> None:
        self._last: Floats | None = None

    def predict(self, actual: Floats) -> Floats | None:
        """Return the last step's counts."""
        return self._last

    def observe(self, actual: Floats) -> None:
        """Keep the counts."""
        self._last = actual


class MovingAverage:
    """Takes this step for the mean of the last ones."""

    def __init__(self, window: int = 16) -> None:
        if window < 1:
            raise InputError(f"window: must be at least 1, got {window}")
        self._steps: deque[Floats] = deque(maxlen=window)

    def predict(self, actual: Floats) -> Floats | None:
        """Return the mean of the window."""
        return np.mean(self._steps, axis=0) if self._steps else None

    def observe(self, actual: Floats) -> None:
        """Keep the counts."""
        self._steps.append(actual)


class OfAccuracy:
    """Predicts each choice of an expert, right with a given probability and else any other expert.

    It stands for a look-ahead router whose top-k accuracy is known (0.87 to 0.94 published for a
    trained one, 0.7 to 0.8 for a frozen copy of the next router).
    """

    def __init__(self, accuracy: float, seed: int = 0) -> None:
        if not 0 <= accuracy <= 1:
            raise InputError(f"accuracy: must lie in [0, 1], got {accuracy:g}")
        self.accuracy = accuracy
        self._rng = np.random.default_rng(seed)

    def predict(self, actual: Floats) -> Floats | None:
        """Return the counts with wrong choices spread evenly over the other experts."""
        experts = len(actual)
        # kept with probability q, else drawn evenly over all experts: q + (1 - q) / experts is right
        kept = max((experts * self.accuracy - 1.0) / (experts - 1.0), 0.0)
        right = self._rng.binomial(actual.astype(np.int64), kept)
        wrong = actual.astype(np.int64).sum(axis=0) - right.sum(axis=0)
        drawn = self._rng.multinomial(wrong, np.full(experts, 1.0 / experts))
        predicted = right + drawn.T.astype(np.float64)
        return np.asarray(predicted, np.float64)

    def observe(self, actual: Floats) -> None:
        """Learn nothing."""
