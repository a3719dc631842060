"""Texts of the rerun of PAMA and their two rewards."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOKENS, LENGTH = 8, 12


def rewards_of(texts: Ints, skew: float = 1.0) -> Floats:
    """Return two rewards of texts (N, T), each a share of tokens, the second times ``skew``.

    Liked tokens (0 and 1), and tokens that follow their neighbour by one (cyclically). Either can
    reach 1: 0 1 0 1 ... has about (1, .5) and counting through (.25, 1). The best least reward mixes
    the two.
    """
    liked = (texts < 2).mean(1)
    in_order = ((texts[:, 1:] - texts[:, :-1]) % TOKENS == 1).mean(1)
    return np.stack([liked, skew * in_order], 1)


def hypervolume(rewards: Floats, reference: Floats) -> float:
    """Return the area between a point of two mean rewards and a reference it should exceed."""
    return float(np.prod(np.maximum(rewards - reference, 0.0)))
