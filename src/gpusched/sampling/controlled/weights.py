"""Weights of the objectives against which the best policy does worst (RMOD, arXiv 2503.08796).

The maximin game between a policy, paid for leaving the reference, and an adversary who weighs the
objectives has weights w* = argmin log mean_k exp(strength (V w)_k) over K candidates of the
reference; the policy's answer to them is p_k proportional to exp(strength (V w*)_k).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.solve.convex_simplex import log_mean_exp_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RobustWeights:
    """The game's solution for a batch of candidate sets."""

    weights: Floats
    """Of the objectives, shape (..., G)."""
    mix: Floats
    """The policy's probabilities of the candidates, shape (..., K)."""
    value: Floats
    """log mean exp at the weights: strength times the worst value, less the divergence paid."""
    gap: Floats
    """Proof: the value is at most this far above its minimum."""


def robust_weights(
    values: ArrayLike,
    strength: float = 1.0,
    *,
    smoothing: float = 0.0,
    start: ArrayLike | None = None,
    paper_iterations: int | None = None,
) -> RobustWeights:
    """Return the worst-case weights for candidates' values of shape (..., K, G).

    Args:
        values: of each candidate on each objective; scales matter, so standardise them.
        strength: how far the policy may leave the reference (the paper's lambda).
        smoothing: pulls weights towards uniform ones, in nats of divergence.
        start: weights to start from, such as the last block's.
        paper_iterations: instead of solving, take so many of the published code's gradient steps.

    Raises:
        InputError: wrong shapes, no candidates or objectives, or a figure that is not finite.
    """
    if paper_iterations is not None and (smoothing or paper_iterations < 0):
        raise InputError("paper_iterations: 0 or more steps, and no smoothing with them")
    found = log_mean_exp_weights(values, strength, smoothing=smoothing, start=start)
    v = np.asarray(values, np.float64)
    if paper_iterations is None:
        return RobustWeights(
            found.weights, _mix(v, strength, found.weights), found.value, found.gap
        )
    weights = published_steps(v, strength, paper_iterations)
    value = _value(v, strength, weights)
    return RobustWeights(
        weights, _mix(v, strength, weights), value, value - found.value + found.gap
    )


def published_steps(values: ArrayLike, strength: float, iterations: int = 10) -> Floats:
    """Return the weights that the paper's published code takes, shape (..., G).

    Gradient descent through a softmax on the mean exponential, not its logarithm, with steps of
    1/sqrt(i + 1) and gradients clipped to 10 either way: it stops long before convergence for small
    strengths and overshoots for large ones.
    """
    v = np.asarray(values, np.float64)
    logits = np.zeros(v.shape[:-2] + v.shape[-1:])
    for i in range(iterations):
        w = _softmax(logits)
        e = np.exp(np.minimum(strength * np.einsum("...kg,...g->...k", v, w), 700.0))
        slope = strength * np.einsum("...k,...kg->...g", e, v) / v.shape[-2]
        gradient = w * (slope - (w * slope).sum(-1, keepdims=True))
        logits = logits - np.clip(np.nan_to_num(gradient), -10.0, 10.0) / np.sqrt(i + 1.0)
    return _softmax(logits)


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _mix(v: Floats, strength: float, weights: Floats) -> Floats:
    return _softmax(strength * np.einsum("...kg,...g->...k", v, weights))


def _value(v: Floats, strength: float, weights: Floats) -> Floats:
    x = strength * np.einsum("...kg,...g->...k", v, weights)
    top = x.max(-1)
    return np.asarray(top + np.log(np.exp(x - top[..., None]).mean(-1)))
