"""Random draws that depend on a seed and an index alone, so that policies see the same ones."""

import numpy as np

from gpusched.compilation import kernel


@kernel
def random_u64(seed, index):
    """The ``index``-th draw of a stream (splitmix64; Steele, Lea, Flood, OOPSLA 2014)."""
    z = np.uint64(seed) + np.uint64(index + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
