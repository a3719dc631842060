"""A language of 16 words whose probabilities are tables: candidates of known use and harm."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WORDS = 16
LENGTH = 24
"""Words of a text at most."""
END = 0
USEFUL, HARMFUL = frozenset({1, 2, 3, 4, 5, 6}), frozenset({6, 7})
"""Word 6 is both: part of what helps also harms."""
STYLES = 8
REFUSAL = 0.02
"""Use and harm of a refusal."""


class ToyModel:
    """A Markov chain over words."""

    def __init__(self, rng: np.random.Generator) -> None:
        following = rng.dirichlet(np.full(WORDS, 0.4), WORDS)
        following[:, END] = 0.08
        self.following: Floats = np.cumsum(following / following.sum(axis=1, keepdims=True), axis=1)

    def sample(self, rng: np.random.Generator) -> list[int]:
        """Return a text."""
        words: list[int] = []
        word = int(rng.integers(1, WORDS))
        for u in rng.random(LENGTH):
            words.append(word)
            word = min(int(np.searchsorted(self.following[word], u, side="right")), WORDS - 1)
            if word == END:
                break
        return words


def usefulness(words: Sequence[int]) -> float:
    """Return how far a text is to ten useful words."""
    return min(1.0, sum(word in USEFUL for word in words) / 10)


def harm(words: Sequence[int]) -> float:
    """Return how far a text is to eight harmful words."""
    return min(1.0, sum(word in HARMFUL for word in words) / 8)


def scored_candidates(prompts: int, candidates: int, seed: int) -> tuple[Floats, Floats]:
    """Return true use and harm, shape (prompts, 1 + candidates); column 0 is a refusal."""
    rng = np.random.default_rng(seed)
    models = [ToyModel(rng) for _ in range(STYLES)]
    h, r = (np.full((prompts, 1 + candidates), REFUSAL) for _ in range(2))
    for q in range(prompts):
        for k in range(1, 1 + candidates):
            words = models[q % STYLES].sample(rng)
            h[q, k], r[q, k] = usefulness(words), harm(words)
    return h, r


def noisy(scores: Floats, error: float, rng: np.random.Generator) -> Floats:
    """Return scores off by up to ``error``, within [0, 1]."""
    return np.clip(scores + rng.uniform(-error, error, scores.shape), 0.0, 1.0)
