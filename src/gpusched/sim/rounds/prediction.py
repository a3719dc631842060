"""Predicted prefill times."""

from gpusched.compilation import kernel
from gpusched.policies.batching.discipline import CHUNKED
from gpusched.sim.timing_kernels import chunk_work, tokens_s, window_work


@kernel
def prefill_s(s, e, new, past):
    """Time an engine would take to compute ``new`` prompt tokens after ``past`` ones, alone."""
    engine = s.engines[e]
    scalars = s.scalars[engine.timing]
    full = 0
    if engine.forming == CHUNKED:
        full = (new - 1) // engine.max_batched_tokens
    rest = new - full * engine.max_batched_tokens
    return (
        full * tokens_s(s, engine.timing, engine.max_batched_tokens)
        + tokens_s(s, engine.timing, rest)
        + (full + 1) * scalars.prefill_fixed_s
        + scalars.work_s * chunk_work(new, past)
        + scalars.window_work_s * window_work(new, past, scalars.window)
        + s.logits_s[engine.timing, 1]
    )
