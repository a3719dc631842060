"""An engine of known figures."""

from gpusched.timing.measured import (
    MeasuredEngine,
    MeasuredError,
    MeasuredIteration,
    MeasuredRanges,
    RequestOverhead,
)

ITERATION = MeasuredIteration(
    decode_batch=(1, 2, 3, 16),
    decode_s=(6e-3, 7e-3, 5.5e-3, 9e-3),
    tokens=(9, 65, 257, 2048),
    tokens_s=(9e-3, 0.02, 0.06, 0.48),
    sequence_s=3e-4,
    context_s=1e-6,
    pair_s=3e-8,
)


def made_up(**changes: object) -> MeasuredEngine:
    values = {
        "engine": "vllm",
        "model": "m",
        "max_num_seqs": 16,
        "max_num_batched_tokens": 1024,
        "kv_tokens": 131_072,
        "block_size": 16,
        "max_model_len": 2048,
        "iteration": ITERATION,
        "request": RequestOverhead(entry_s=4e-3, entry_token_s=2e-6, exit_s=1e-3),
        "ranges": MeasuredRanges(batch=(1, 16), prompt_tokens=(8, 1000), context_tokens=(16, 2000)),
        "error": MeasuredError(relative=0.03, rows=100, condition=6.0),
    }
    return MeasuredEngine(**{**values, **changes})
