"""A transformer's architecture: the figures that fix its parameters, KV cache and arithmetic."""

from dataclasses import dataclass

from gpusched.errors import InputError


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Multi-head, grouped-query or multi-query attention (``kv_heads`` = heads, some, 1)."""

    query_heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_gate: bool = False
    """A sigmoid gate on the attention output doubles the query projection (Qwen3-Next, Qwen3.5)."""

    def parameters(self, hidden: int) -> int:
        """Weights of one layer: query, key, value and output projections."""
        queries = self.query_heads * (2 if self.output_gate else 1)
        return hidden * self.head_dim * (queries + 2 * self.kv_heads + self.query_heads)

    @property
    def kv_elements(self) -> int:
        """KV cache elements of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim


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

    def parameters(self, hidden: int) -> int:
        """Weights of one layer, the lightning indexer of sparse attention aside."""
        queries = self.query_heads * (self.nope_dim + self.rope_dim)
        rank = self.query_rank
        query = hidden * queries if rank is None else hidden * rank + rank * queries
        latent = hidden * (self.kv_rank + self.rope_dim)
        up = self.kv_rank * self.query_heads * (self.nope_dim + self.value_dim)
        return query + latent + up + self.query_heads * self.value_dim * hidden

    @property
    def kv_elements(self) -> int:
        """KV cache elements of one token in one layer: the latent and the rotary key."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated delta-net layers with a constant-size state (Qwen3-Next, Qwen3.5)."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 4

    def parameters(self, hidden: int) -> int:
        """Weights of one layer: q, k, v, gate, decay and write strength, convolution, output."""
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        projections = hidden * (2 * keys + 3 * values + 2 * self.value_heads)
        return projections + self.conv_kernel * (2 * keys + values)

    @property
    def state_elements(self) -> int:
        """Elements of one layer's recurrent and convolution state."""
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        return self.value_heads * self.key_dim * self.value_dim + self.conv_kernel * (
            2 * keys + values
        )


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

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "vocab", "max_context_tokens"):
            if getattr(self, field) < 1:
                raise InputError(
                    f"model {self.name}: {field} must be at least 1, got {getattr(self, field)}"
                )
        if self.moe is None and self.ffn_dim < 1:
            raise InputError(f"model {self.name}: ffn_dim must be at least 1 without experts")
        if self.moe is not None and not 1 <= self.moe.top_k <= self.moe.experts:
            raise InputError(
                f"model {self.name}: top_k must lie between 1 and {self.moe.experts} experts, "
                f"got {self.moe.top_k}"
            )
        if (
            self.sliding_layers + self.linear_layers > self.layers
            or self.dense_layers > self.layers
        ):
            raise InputError(
                f"model {self.name}: more special layers than its {self.layers} layers"
            )
        if (self.sliding_layers > 0) != (self.sliding_window is not None):
            raise InputError(f"model {self.name}: give sliding_window and sliding_layers together")
        if (self.linear_layers > 0) != (self.linear_attention is not None):
            raise InputError(f"model {self.name}: give linear_attention and linear_layers together")

    @property
    def moe_layers(self) -> int:
        """Layers whose feed-forward is a mixture of experts."""
        return self.layers - self.dense_layers if self.moe is not None else 0

    @property
    def full_attention_layers(self) -> int:
        """Layers that attend to the whole context."""
        return self.layers - self.sliding_layers - self.linear_layers

    @property
    def attention_parameters(self) -> int:
        """Weights of one attention layer (not a linear one)."""
        return self.attention.parameters(self.hidden)

    @property
    def dense_ffn_parameters(self) -> int:
        """Weights of one dense feed-forward layer."""
        return (3 if self.gated_ffn else 2) * self.hidden * self.ffn_dim

    @property
    def expert_parameters(self) -> int:
        """Weights of one routed expert; 0 without experts."""
        return 3 * self.hidden * self.moe.expert_dim if self.moe is not None else 0

    @property
    def shared_parameters(self) -> int:
        """Weights of one MoE layer's router and shared experts; 0 without experts."""
        if self.moe is None:
            return 0
        return self.hidden * (self.moe.experts + 3 * self.moe.shared_dim)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the input embedding; the output projection has as many, or shares them."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, norms and biases aside."""
        experts = self.moe.experts if self.moe is not None else 0
        return self._parameters(experts)

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes through, both embeddings counted."""
        return self._parameters(self.moe.top_k if self.moe is not None else 0)

    def _parameters(self, experts: int) -> int:
        attention = (self.layers - self.linear_layers) * self.attention_parameters
        if self.linear_attention is not None:
            attention += self.linear_layers * self.linear_attention.parameters(self.hidden)
        ffn = (self.layers - self.moe_layers) * self.dense_ffn_parameters
        moe = self.moe_layers * (experts * self.expert_parameters + self.shared_parameters)
        embeddings = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return attention + ffn + moe + embeddings

    def kv_bytes_per_token(self, element_bytes: float = 2.0) -> float:
        """KV cache of one token over all layers that keep one, sliding ones included."""
        layers = self.layers - self.linear_layers
        return layers * self.attention.kv_elements * element_bytes

    def state_bytes_per_sequence(self) -> float:
        """Constant-size state of the linear-attention layers of one sequence, kept in float32."""
        if self.linear_attention is None:
            return 0.0
        return 4.0 * self.linear_layers * self.linear_attention.state_elements
