"""The timing model as a few small arrays, the form that compiled kernels read."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class CompiledTiming(NamedTuple):
    """Time of one engine iteration as a function of a few aggregates of its batch.

    With ``n`` tokens in the batch, ``b`` decoding requests of contexts ``c_i`` (the token being
    computed included), prefill chunks of ``a_j`` new tokens after ``p_j`` past ones, and ``s``
    sequences sampled (the decodes and the prefills that finish)::

        decode only  T = decode_s[b] + context_s * sum(c_i) + window_context_s * sum(min(c_i, w))
        otherwise    T = tokens_s(n) + logits_s[s]
                         + [b > 0] * (decode_fixed_s + context_s * sum(c_i)
                                      + window_context_s * sum(min(c_i, w)))
                         + prefill_fixed_s + work_s * W + window_work_s * W_w

    ``W = sum_j a_j p_j + a_j (a_j + 1) / 2`` counts the query-key pairs of the chunks and ``W_w``
    the same with each query seeing at most ``w`` keys. ``tokens_s(n)`` is read from the table and
    continued by its last slope. Host time per iteration is inside both tables.

    Under data-parallel attention this is the time of one unit when all units carry as many tokens;
    ``experts_s`` is the part of it that depends on the tokens of all units together.
    """

    tokens_s: NDArray[np.float64]
    """Shape (max tokens + 1,); everything that depends on the number of tokens alone."""
    decode_s: NDArray[np.float64]
    """Shape (max sequences + 1,); a decode-only iteration of b sequences at zero context."""
    logits_s: NDArray[np.float64]
    """Shape (max sequences + 1,); output projection and sampling."""
    context_s: float
    window_context_s: float
    window: int
    """Sliding window in tokens; 0 where the model has none."""
    decode_fixed_s: float
    prefill_fixed_s: float
    work_s: float
    window_work_s: float
    experts_s: NDArray[np.float64] = np.zeros(2)
    """Shape (max tokens of all units + 1,), continued by its last slope; zeros where the batches of
    units do not add up in any part."""
