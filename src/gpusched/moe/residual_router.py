"""A look-ahead router: a frozen copy of the next layer's, and a small residual network (B13)."""

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class ResidualRouter:
    """Predicts a layer's choice of experts from the hidden state before the layer in front of it.

    ``logits = h W + b + silu(h W1) W2``, with W and b frozen and W2 zero at first, so that it starts
    as the plain copy of the router. Trained online by Adam on the cross-entropy with the true
    router's distribution.
    """

    def __init__(
        self,
        weight: Floats,
        bias: Floats | None = None,
        *,
        width: int = 256,
        rate: float = 2e-3,
        seed: int = 0,
    ) -> None:
        """``weight`` of shape (hidden, experts) and ``bias`` of shape (experts,) are the router's.

        Raises:
            InputError: shapes that do not match.
        """
        self.weight = np.asarray(weight, np.float64)
        if self.weight.ndim != 2:
            raise InputError(f"weight: must have shape (hidden, experts), got {self.weight.shape}")
        hidden, experts = self.weight.shape
        self.bias = np.zeros(experts) if bias is None else np.asarray(bias, np.float64)
        if self.bias.shape != (experts,):
            raise InputError(f"bias: must have shape ({experts},), got {self.bias.shape}")
        rng = np.random.default_rng(seed)
        self.rate = rate
        self.parameters = [
            rng.normal(0.0, hidden**-0.5, (hidden, width)),
            np.zeros((width, experts)),
        ]
        self._means = [np.zeros_like(p) for p in self.parameters]
        self._squares = [np.zeros_like(p) for p in self.parameters]
        self._steps = 0

    def logits(self, hidden: Floats) -> Floats:
        """Return logits of shape (tokens, experts) for hidden states of shape (tokens, hidden)."""
        inward, outward = self.parameters
        plain = hidden @ self.weight + self.bias
        return np.asarray(plain + _silu(hidden @ inward) @ outward, np.float64)

    def choose(self, hidden: Floats, top_k: int) -> Ints:
        """Return the predicted experts of each token, shape (tokens, top_k)."""
        return np.argpartition(-self.logits(hidden), top_k - 1, axis=1)[:, :top_k]

    def train(self, hidden: Floats, target: Floats) -> float:
        """Take one step towards the true distributions ``target`` of shape (tokens, experts) and
        return the cross-entropy before it.

        Raises:
            InputError: rows of ``target`` that are no distributions.
        """
        if (
            not np.isfinite(target).all()
            or target.min() < 0
            or np.abs(target.sum(axis=1) - 1).max() > 1e-6
        ):
            raise InputError("target: rows must be probabilities in [0, 1] that sum to 1")
        inward, outward = self.parameters
        before = hidden @ inward
        gate = 1.0 / (1.0 + np.exp(-np.clip(before, -60, 60)))
        middle = before * gate
        logits = hidden @ self.weight + self.bias + middle @ outward
        logits = logits - logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        error = (np.exp(logs) - target) / len(hidden)
        back = (error @ outward.T) * (gate + middle * (1.0 - gate))
        self._steps += 1
        for index, gradient in enumerate((hidden.T @ back, middle.T @ error)):
            mean, square = self._means[index], self._squares[index]
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            scale = np.sqrt(1 - 0.999**self._steps) / (1 - 0.9**self._steps)
            self.parameters[index] -= self.rate * scale * mean / (np.sqrt(square) + 1e-8)
        return float(-(target * logs).sum(axis=1).mean())


def _silu(x: Floats) -> Floats:
    return np.asarray(x / (1.0 + np.exp(-np.clip(x, -60, 60))), np.float64)


def choice_accuracy(predicted: Ints, actual: Ints) -> float:
    """Return the share of chosen experts that were predicted, both of shape (tokens, top_k)."""
    hits = (predicted[:, :, None] == actual[:, None, :]).any(axis=1)
    return float(hits.mean())
