"""How large batches may grow."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.timing.machines import Machines

Integers = NDArray[np.int64]

UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class BatchLimits:
    """Most work that one batch of each node takes, arrays of shape (n,)."""

    prompt_requests: Integers
    prompt_tokens: Integers
    decode_requests: Integers
    decode_context: Integers
    """Tokens in the caches of the requests that decode."""


def measured_limits(machines: Machines) -> BatchLimits:
    """Return limits that keep batches within the sizes for which the profiles have times."""
    kinds = [machines.kinds[kind] for kind in machines.kind_of]
    n = len(kinds)
    return BatchLimits(
        np.full(n, UNLIMITED),
        np.array([int(kind.prompt_tokens[-1]) for kind in kinds], np.int64),
        np.array([int(kind.decode_requests[-1]) for kind in kinds], np.int64),
        np.full(n, np.iinfo(np.int64).max // 2),
    )
