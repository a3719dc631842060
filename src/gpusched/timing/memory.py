"""What fits into a GPU's memory: weights, working space and the KV cache that is left."""

from dataclasses import dataclass, replace

from gpusched.domain.dtypes import KV_BYTES, WEIGHT_BYTES
from gpusched.domain.engine import EngineSettings
from gpusched.domain.gpu import Gpu
from gpusched.domain.model import LatentAttention, Model
from gpusched.domain.parallel import Parallelism

GIB = 2.0**30
GRAPHS_BYTES = 1.0e9
"""Captured CUDA graphs and allocator slack."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Use of one GPU's memory, bytes, and the KV cache of the whole replica."""

    weights_bytes: float
    working_bytes: float
    """Activations, communication buffers, CUDA graphs."""
    kv_bytes: float
    """Left for the KV cache; negative if the rest does not fit."""
    kv_bytes_per_token: float
    """Of one token on one GPU, all of the layers that keep the whole context."""
    sequence_bytes: float
    """Of one sequence on one GPU whatever its length: recurrent state and full windows."""

    def kv_blocks(self, block_tokens: int, max_num_seqs: int) -> int:
        """Return how many KV blocks fit; 0 if none."""
        left = self.kv_bytes - self.sequence_bytes * max_num_seqs
        if self.kv_bytes_per_token <= 0:
            return 2**40 if left > 0 else 0
        return max(int(left / (self.kv_bytes_per_token * block_tokens)), 0)


def weights_dtype_of_attention(model: Model, weights_dtype: str) -> str:
    """Return the format of attention weights: where only experts are in 4 bits it is bf16."""
    experts_only = model.moe is not None and weights_dtype in ("mxfp4", "int4")
    return "bf16" if experts_only else weights_dtype


def weights_bytes(model: Model, parallelism: Parallelism, weights_dtype: str) -> float:
    """Return the bytes of weights on one GPU (the largest pipeline stage may hold more)."""
    p = parallelism
    expert_bytes = WEIGHT_BYTES[weights_dtype]
    other_bytes = WEIGHT_BYTES[weights_dtype_of_attention(model, weights_dtype)]
    experts = model.moe.experts if model.moe is not None else 0
    routed = model.moe_layers * experts * model.expert_parameters
    embeddings = model.embedding_parameters * (1 if model.tied_embeddings else 2)
    other = model.parameters - routed - embeddings
    layers = (routed * expert_bytes / (p.tp * p.dp) + other * other_bytes / p.tp) / p.pp
    return layers + embeddings * 2.0 / p.tp


def memory(
    model: Model,
    gpu: Gpu,
    parallelism: Parallelism,
    engine: EngineSettings,
    *,
    weights_dtype: str,
    kv_cache_dtype: str,
    max_num_batched_tokens: int,
) -> Memory:
    """Return how one GPU's memory divides under an engine's settings.

    KV heads are split over tensor parallel GPUs as far as they go; a latent is replicated.
    """
    p = parallelism
    kv_width = KV_BYTES[kv_cache_dtype]
    attention = model.attention
    split = 1 if isinstance(attention, LatentAttention) else min(p.tp, attention.kv_heads)
    per_layer = attention.kv_elements * kv_width / split / p.pp
    windows = per_layer * model.sliding_layers * (model.sliding_window or 0)
    state = model.state_bytes_per_sequence() / (p.tp * p.pp)
    width = max(model.ffn_dim, (model.moe.expert_dim * model.moe.top_k) if model.moe else 0)
    activations = max_num_batched_tokens * 2.0 * (12.0 * model.hidden + 4.0 * width / p.tp)
    logits = 4.0 * engine.max_num_seqs * model.vocab / p.tp
    buffers = (0.15 if p.gpus == 1 else 0.6) * GIB
    weights = weights_bytes(model, p, weights_dtype)
    working = activations + logits + buffers + GRAPHS_BYTES
    budget = engine.gpu_memory_utilization * gpu.memory_bytes
    return Memory(
        weights_bytes=weights,
        working_bytes=working,
        kv_bytes=budget - weights - working,
        kv_bytes_per_token=per_layer * model.full_attention_layers,
        sequence_bytes=windows + state,
    )


def disaggregated_memory(
    model: Model,
    gpu: Gpu,
    attention_gpus: int,
    expert_gpus: int,
    engine: EngineSettings,
    *,
    weights_dtype: str,
    kv_cache_dtype: str,
    max_num_batched_tokens: int,
) -> tuple[Memory, float]:
    """Return how an attention GPU's memory divides where experts have GPUs of their own, and the bytes
    that an expert GPU needs for weights and tokens in flight."""
    assert model.moe is not None
    expert_bytes = WEIGHT_BYTES[weights_dtype] * model.expert_parameters
    own = -(-max_num_batched_tokens // attention_gpus)
    alone = memory(
        model, gpu, Parallelism(), engine, weights_dtype=weights_dtype,
        kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=own,
    )  # fmt: skip
    routed = model.moe_layers * model.moe.experts * expert_bytes
    held = model.moe_layers * -(-model.moe.experts // expert_gpus) * expert_bytes
    in_flight = 2.0 * max_num_batched_tokens * model.moe.top_k / expert_gpus
    in_flight *= 2.0 * model.hidden + 2.0 * model.moe.expert_dim
    attention = replace(
        alone, weights_bytes=alone.weights_bytes - routed, kv_bytes=alone.kv_bytes + routed
    )
    return attention, held + in_flight + 0.6 * GIB + GRAPHS_BYTES
