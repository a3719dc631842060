"""A network of unequal machines and the layers each holds, as arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.timing.layers import LayerProfile


@dataclass(frozen=True)
class Machines:
    """Machines of one cluster, the links between them, and the model they serve.

    The last row and column of the link matrices are the front, where requests enter and answers
    leave.
    """

    names: tuple[str, ...]
    """Of the n nodes."""
    regions: tuple[str, ...]
    """Of the n nodes."""
    kind_of: NDArray[np.int64]
    """Index into ``kinds``, shape (n,)."""
    kinds: tuple[LayerProfile, ...]
    bandwidth_bytes_per_s: NDArray[np.float64]
    """Shape (n + 1, n + 1), as ``link_matrices`` returns."""
    latency_s: NDArray[np.float64]
    """One way, shape (n + 1, n + 1)."""
    layers: int
    """Of the model."""
    token_bytes: float
    """Of a token id on links of the front."""
    activation_bytes: float
    """Of one token's activations between nodes."""


@dataclass(frozen=True)
class Placement:
    """The contiguous layers of every node."""

    first: NDArray[np.int64]
    """First layer, shape (n,)."""
    count: NDArray[np.int64]
    """Layers held, shape (n,); 0 for a node that is not used."""
