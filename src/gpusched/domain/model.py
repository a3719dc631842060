"""A transformer's architecture: the figures that fix its parameters, KV cache and arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Multi-head, grouped-query or multi-query attention (``kv_heads`` = heads, some, 1)."""

    query_heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_gate: bool = False
    """A sigmoid gate on the attention output doubles the query projection (Qwen3-Next, Qwen3.5)."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention, MLA (DeepSeek-V2, arXiv 2405.04434)."""

    query_heads: int
    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    sparse_top_k: int | None = None
    """DeepSeek sparse attention: each query attends to at most this many tokens."""


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated delta-net layers with a constant-size state (Qwen3-Next, Qwen3.5)."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Routed and shared experts of one MoE layer; all are gated (three matrices)."""

    experts: int
    top_k: int
    expert_dim: int
    shared_dim: int = 0
    """Total width of the shared experts."""


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder-only transformer."""

    name: str
    layers: int
    hidden: int
    vocab: int
    attention: GroupedQueryAttention | LatentAttention
    ffn_dim: int
    """Width of the dense feed-forward layers (0 if every layer is MoE)."""
    gated_ffn: bool = True
    tied_embeddings: bool = False
    moe: MixtureOfExperts | None = None
    dense_layers: int = 0
    """In an MoE model, how many layers keep a dense feed-forward; ignored without ``moe``."""
    sliding_window: int | None = None
    sliding_layers: int = 0
    """How many layers attend only to the last ``sliding_window`` tokens."""
    linear_attention: LinearAttention | None = None
    linear_layers: int = 0
    """How many layers use ``linear_attention`` instead of ``attention`` (no KV cache there)."""
    native_dtype: str = "bf16"
    """Dtype the published weights come in: ``bf16, fp8, mxfp4, int4, nvfp4``."""
    max_context_tokens: int = 131072
    source: str = ""
