"""Level rows: in any round at most ``q - 1`` requests hold more than ``M / q`` tokens, and peaks echo.

A request that holds ``x`` tokens counts ``ceil(q x / M) - 1`` (a dual feasible function, Fekete and
Schepers 2001): what fits into ``M`` counts at most ``q - 1``. A request that completed at its peak
``P`` goes on counting. ``d`` rounds later, while ``d <= M / q - S`` (``S`` the largest prompt), those
that hold more than ``M / q`` were running at the completion and held ``d`` fewer then; there are at
most ``q - 1`` of them, so they fit beside ``P - (q - 1) d``, and the completed one counts
``floor(q (P - (q - 1) d) / M)``, at most ``q - 1``. The same holds for several completed ones: at the
earliest of their completions the later ones ran, or are too small to count. For ``q = 2`` the rows
say that peaks keep apart (see ``bounds``).
"""

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.batching.rounds import Ints

LEVELS = (2, 3, 4, 5)


def level_weights(s: Ints, o: Ints, kv_tokens: int, q: int) -> tuple[NDArray[np.int64], int]:
    """Return what each request counts around its completion, shape (requests, rounds), and the
    column of its last round; each row sums, over requests in a round, to at most ``q - 1``."""
    before = int(o.max()) - 1
    after = max(kv_tokens // q - int(s.max()), 0)
    offset = np.arange(-before, after + 1)
    held = (s + o)[:, None] + offset
    running = (offset <= 0) & (offset > -o[:, None])
    counts = np.where(running, -(-q * held // kv_tokens) - 1, 0)
    echo = q * ((s + o)[:, None] - (q - 1) * offset) // kv_tokens
    echoes = np.where(offset > 0, np.clip(echo, 0, q - 1), 0)
    return np.maximum(counts, 0) + echoes, before
