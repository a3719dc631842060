"""Time of one iteration of an engine, for any mix of prefill chunks and decodes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpusched.domain.dtypes import KV_BYTES, WEIGHT_BYTES
from gpusched.domain.gpu import Gpu
from gpusched.domain.model import GroupedQueryAttention, Model
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.timing.coefficients import Coefficients, coefficients_for
from gpusched.timing.collectives import all_reduce_s, expert_exchange_s, stage_hop_s
from gpusched.timing.compiled import CompiledTiming
from gpusched.timing.memory import weights_dtype_of_attention
from gpusched.timing.operators import (
    ACTIVATION_BYTES,
    Floats,
    Gemm,
    arithmetic_flops,
    bf16_gemm_for,
    experts_read,
    gemm_for,
    p_norm,
)

LARGEST_GRAPH = 512
LARGEST_GROUP = 131_072
"""Tokens of all data-parallel units beyond which experts are bound by compute, hence linear."""
INDEXER_HEADS, INDEXER_DIM = 64, 128


class LayerParts(NamedTuple):
    """Parts of one layer that go by its tokens, seconds, on the GPUs that share its attention."""

    attention_s: Floats
    """Projections and element-wise work, without what goes by context."""
    dense_s: Floats
    """Dense feed-forward; 0 in a model of experts alone."""
    shared_s: Floats
    """Router and shared experts; 0 without experts."""


@dataclass(frozen=True)
class TimingModel:
    """One engine: a model in a number format, spread over GPUs of one type.

    Formulas: the operators of a layer are smooth rooflines, summed; weights are read once however
    prefill and decode mix; attention is linear in the context of decodes and in the query-key pairs
    of prefill chunks.
    """

    model: Model
    gpu: Gpu
    parallelism: Parallelism
    weights_dtype: str
    kv_cache_dtype: str
    coefficients: Coefficients

    def tokens_s(self, tokens: Floats) -> Floats:
        """Return the part of an iteration that depends on its number of tokens alone."""
        model, p, c = self.model, self.parallelism, self.coefficients
        m = np.asarray(tokens, np.float64)
        total = self._all_projections_s(m)
        dense_layers = model.layers - model.moe_layers
        if dense_layers:
            total = total + dense_layers * self._ffn_s(m, model.ffn_dim)
        if model.moe_layers:
            total = total + model.moe_layers * self._moe_s(m)
        total = total + model.layers * self._elementwise_s(m)
        if p.pp > 1:
            total = total + (p.pp - 1) * stage_hop_s(m, model.hidden, self.gpu, c)
        return np.where(m > 0, total + c.host_s, 0.0)

    def layer_parts_s(self, tokens: Floats) -> LayerParts:
        """Return the parts of one layer, mean over layers of several kinds of attention."""
        model = self.model
        m = np.asarray(tokens, np.float64)
        none = np.zeros_like(m)
        attention_s = self._all_projections_s(m) / model.layers + self._elementwise_s(m)
        dense_s = self._ffn_s(m, model.ffn_dim) if model.ffn_dim else none
        shared_s = self._router_and_shared_s(m) if model.moe is not None else none
        return LayerParts(attention_s, dense_s, shared_s)

    def experts_s(self, tokens: Floats) -> Floats:
        """Return the part of ``tokens_s`` that goes by the tokens of all data-parallel units: the
        routed experts, their work shared by the GPUs of all units."""
        n = np.asarray(tokens, np.float64)
        if not self.model.moe_layers:
            return np.zeros_like(n)
        return np.where(n > 0, self.model.moe_layers * self._routed_experts_s(n), 0.0)

    def logits_s(self, sequences: Floats) -> Floats:
        """Return output projection, sampling and per-sequence state of an iteration."""
        s = np.asarray(sequences, np.float64)
        gemm = bf16_gemm_for(self.gpu, self.coefficients)
        head_s = gemm.time_s(s, self.model.vocab / self.parallelism.tp, self.model.hidden)
        state_bytes = 2.0 * self.model.state_bytes_per_sequence() / self.parallelism.tp
        state_s = state_bytes / (
            self.coefficients.decode_attention_memory * self.gpu.memory_bytes_per_s
        )
        return np.where(s > 0, head_s + s * (state_s + self.coefficients.sequence_s), 0.0)

    @property
    def decode_fixed_s(self) -> float:
        """Launch of decode attention in every layer."""
        return self.coefficients.decode_attention_fixed_s * (
            self.model.layers - self.model.linear_layers
        )

    @property
    def prefill_fixed_s(self) -> float:
        """Launch of prefill attention in every layer."""
        return self.coefficients.prefill_attention_fixed_s * self.model.layers

    @property
    def context_s(self) -> float:
        """Decode attention per token of context, over the layers that see all of it."""
        attention = self.model.attention
        if not isinstance(attention, GroupedQueryAttention) and attention.sparse_top_k is not None:
            scan_bytes = INDEXER_DIM * 1.0 + 4.0
            scan_flops = 2.0 * INDEXER_HEADS * INDEXER_DIM
            return self.model.layers * self._context_token_s(
                scan_bytes, scan_flops, arithmetic_flops(self.gpu, "fp8")
            )
        return self.model.full_attention_layers * self._attention_token_s()

    @property
    def window(self) -> int:
        """Tokens that windowed or sparse attention sees; 0 without either."""
        attention = self.model.attention
        if not isinstance(attention, GroupedQueryAttention) and attention.sparse_top_k is not None:
            return attention.sparse_top_k
        return self.model.sliding_window or 0

    @property
    def window_context_s(self) -> float:
        """Decode attention per token inside the window."""
        attention = self.model.attention
        if not isinstance(attention, GroupedQueryAttention) and attention.sparse_top_k is not None:
            return self.model.layers * self._attention_token_s()
        return self.model.sliding_layers * self._attention_token_s()

    @property
    def work_s(self) -> float:
        """Prefill attention per query-key pair, over the layers that see all of them."""
        attention = self.model.attention
        if not isinstance(attention, GroupedQueryAttention) and attention.sparse_top_k is not None:
            scan_flops = 2.0 * INDEXER_HEADS * INDEXER_DIM
            rate = arithmetic_flops(self.gpu, "fp8") * self.coefficients.prefill_attention_compute
            return self.model.layers * scan_flops / rate
        return self.model.full_attention_layers * self._pair_s()

    @property
    def window_work_s(self) -> float:
        """Prefill attention per query-key pair inside the window."""
        attention = self.model.attention
        if not isinstance(attention, GroupedQueryAttention) and attention.sparse_top_k is not None:
            return self.model.layers * self._pair_s()
        return self.model.sliding_layers * self._pair_s()

    def decode_tokens_s(self, batch: Floats) -> Floats:
        """Return a decode-only iteration at zero context; batches are padded to graph sizes."""
        b = np.asarray(batch, np.float64)
        whole = self.tokens_s(graph_size(b)) + self.logits_s(b) + self.decode_fixed_s
        return np.where(b > 0, whole, 0.0)

    def fractional_decode_s(self, batch: Floats) -> Floats:
        """Return the same for batches that are means: between those of the whole numbers around."""
        low, high = np.floor(batch), np.ceil(batch)
        share = batch - low
        whole = (
            self.tokens_s(graph_size(low)) * (1 - share) + self.tokens_s(graph_size(high)) * share
        )
        return whole + self.logits_s(batch) + self.decode_fixed_s

    def at_imbalance(self, ratio: float) -> "TimingModel":
        """Return the engine with a measured or planned imbalance of experts in place of the fitted
        one: its busiest expert-parallel rank does ``ratio`` times the mean's work.

        Raises:
            InputError: ``ratio`` is below 1 or the experts are not spread over ranks.
        """
        if not 1.0 <= ratio < np.inf:
            raise InputError(f"expert_imbalance: must be at least 1, got {ratio:g}")
        if self.model.moe is None or self.parallelism.ep < 2:
            raise InputError(
                "expert_imbalance: the engine has no experts spread over ranks; "
                "set enable_expert_parallel or leave it out"
            )
        per_doubling = (ratio - 1.0) / np.log2(self.parallelism.ep)
        coefficients = replace(self.coefficients, ep_imbalance=float(per_doubling))
        return replace(self, coefficients=coefficients)

    def compile(self, max_tokens: int = 8192, max_seqs: int = 1024) -> CompiledTiming:
        """Return the model as arrays for batches of up to the given sizes."""
        return _compile(self, max_tokens, max_seqs)

    def iteration_s(
        self, decode_contexts: Sequence[int] = (), chunks: Sequence[tuple[int, int]] = ()
    ) -> float:
        """Return the time of an iteration: contexts of the decodes, chunks as (new, past) tokens.

        Contexts include the token being computed. Every chunk counts as one that finishes.
        """
        c, w = np.asarray(decode_contexts, np.float64), self.window
        time_s = self.context_s * c.sum() + self.window_context_s * np.minimum(c, w).sum()
        if not chunks:
            return float(self.decode_tokens_s(np.array(len(c), np.float64)) + time_s)
        tokens = len(c) + sum(new for new, _ in chunks)
        time_s += float(self.tokens_s(np.array(tokens, np.float64)))
        time_s += (
            float(self.logits_s(np.array(len(c) + len(chunks), np.float64))) + self.prefill_fixed_s
        )
        time_s += self.decode_fixed_s if len(c) else 0.0
        for new, past in chunks:
            time_s += self.work_s * pairs(new, past) + self.window_work_s * window_pairs(
                new, past, w
            )
        return float(time_s)

    def decode_s(self, batch: int, context: float) -> float:
        """Return a decode step of ``batch`` requests of equal context."""
        window = batch * min(context, self.window) * self.window_context_s
        return (
            float(self.decode_tokens_s(np.array(batch, np.float64)))
            + batch * context * self.context_s
            + window
        )

    def prefill_s(self, tokens: int, past: int = 0) -> float:
        """Return a prefill of one request."""
        return self.iteration_s((), ((tokens, past),))

    def affine(self, batch: int = 64, tokens: int = 2048) -> "Affine":
        """Return the linearisation that optimisers use, secants over ``batch`` and ``tokens``.

        ``t_decode = b0 + b1 B + b2 sum(c)`` and ``t_prefill = a0 + a1 n + a2 n^2`` (windows aside).
        """
        low, high = (float(self.decode_tokens_s(np.array(b, np.float64))) for b in (1, batch))
        b1 = (high - low) / max(batch - 1, 1)
        a2 = self.work_s / 2.0
        short, long = (self.prefill_s(n) - a2 * n * n for n in (tokens // 8, tokens))
        a1 = (long - short) / (tokens - tokens // 8)
        return Affine(short - a1 * (tokens // 8), a1, a2, low - b1, b1, self.context_s)

    def _gemm(self) -> Gemm:
        weight_bytes = WEIGHT_BYTES[self.weights_dtype]
        return gemm_for(self.gpu, self.weights_dtype, weight_bytes, self.coefficients)

    def _attention_gemm(self) -> Gemm:
        if weights_dtype_of_attention(self.model, self.weights_dtype) == self.weights_dtype:
            return self._gemm()
        return bf16_gemm_for(self.gpu, self.coefficients)

    def _all_projections_s(self, m: Floats) -> Floats:
        model = self.model
        total = (model.layers - model.linear_layers) * self._projections_s(m)
        if model.linear_attention is not None:
            total = total + model.linear_layers * self._linear_projections_s(m)
        return total

    def _elementwise_s(self, m: Floats) -> Floats:
        p, c = self.parallelism, self.coefficients
        moved = m * self.model.hidden * ACTIVATION_BYTES
        return np.asarray(
            c.elementwise_fixed_s
            + 14.0 * moved / (c.elementwise_memory * self.gpu.memory_bytes_per_s)
            + c.layer_s
            + c.tp_layer_s * np.log2(p.tp)
            + 2.0 * all_reduce_s(moved, p.tp, self.gpu, c)
        )

    def _projections_s(self, m: Floats) -> Floats:
        a, h, tp, gemm = (
            self.model.attention,
            self.model.hidden,
            self.parallelism.tp,
            self._attention_gemm(),
        )
        if isinstance(a, GroupedQueryAttention):
            queries = a.query_heads * (2 if a.output_gate else 1) / tp
            width = (queries + 2 * max(1.0, a.kv_heads / tp)) * a.head_dim
            return gemm.time_s(m, width, h) + gemm.time_s(m, h, a.query_heads * a.head_dim / tp)
        heads = a.query_heads / tp
        query = heads * (a.nope_dim + a.rope_dim)
        latent = a.kv_rank + a.rope_dim
        if a.query_rank is None:
            down = gemm.time_s(m, query + latent, h)
        else:
            down = gemm.time_s(m, a.query_rank + latent, h) + gemm.time_s(m, query, a.query_rank)
        up = gemm.time_s(m, heads * (a.nope_dim + a.value_dim), a.kv_rank)
        return down + up + gemm.time_s(m, h, heads * a.value_dim)

    def _linear_projections_s(self, m: Floats) -> Floats:
        a, h, tp, gemm = (
            self.model.linear_attention,
            self.model.hidden,
            self.parallelism.tp,
            self._gemm(),
        )
        assert a is not None
        keys, values = a.key_heads * a.key_dim / tp, a.value_heads * a.value_dim / tp
        scan_flops = 6.0 * m * values * a.key_dim
        rate = self.coefficients.prefill_attention_compute * self.gpu.flops["bf16"] * 0.5
        inward = gemm.time_s(m, 2 * keys + 2 * values, h)
        return inward + gemm.time_s(m, h, values) + scan_flops / rate

    def _ffn_s(self, m: Floats, width: float) -> Floats:
        h, tp, gemm = self.model.hidden, self.parallelism.tp, self._gemm()
        gates = 2 if self.model.gated_ffn else 1
        return gemm.time_s(m, gates * width / tp, h) + gemm.time_s(m, h, width / tp)

    def _moe_s(self, m: Floats) -> Floats:
        moe, p, c, h = self.model.moe, self.parallelism, self.coefficients, self.model.hidden
        assert moe is not None
        total = self._router_and_shared_s(m) + self._routed_experts_s(m * p.dp)
        if p.dp > 1:
            total = total + expert_exchange_s(m / p.tp, h, moe.top_k, p.ep, self.gpu, c)
        return np.asarray(total)

    def _router_and_shared_s(self, m: Floats) -> Floats:
        moe, h = self.model.moe, self.model.hidden
        assert moe is not None
        router = bf16_gemm_for(self.gpu, self.coefficients).time_s(m, moe.experts, h)
        return router + self._ffn_s(m, moe.shared_dim) if moe.shared_dim else router

    def _routed_experts_s(self, group: Floats) -> Floats:
        moe, p, c, h = self.model.moe, self.parallelism, self.coefficients, self.model.hidden
        assert moe is not None
        spread = p.ep * p.expert_tp
        flops = 6.0 * group * moe.top_k * h * moe.expert_dim / spread
        rate = arithmetic_flops(self.gpu, self.weights_dtype)
        compute_s = flops / (c.moe_compute * rate)
        read = experts_read(moe.experts, moe.top_k, group) / spread
        weight_bytes = read * self.model.expert_parameters * WEIGHT_BYTES[self.weights_dtype]
        memory_s = weight_bytes / (c.moe_memory * self.gpu.memory_bytes_per_s)
        longer, shorter = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
        busiest = 1.0 + c.ep_imbalance * np.log2(p.ep)
        return np.asarray(c.moe_fixed_s + busiest * (longer + c.moe_overlap * shorter))

    def _attention_token_s(self) -> float:
        """Decode attention per context token in one layer."""
        a, tp = self.model.attention, self.parallelism.tp
        width = KV_BYTES[self.kv_cache_dtype]
        if isinstance(a, GroupedQueryAttention):
            kv_heads = max(1.0, a.kv_heads / tp)
            moved = 2.0 * kv_heads * a.head_dim * width
            return moved / (self.coefficients.decode_attention_memory * self.gpu.memory_bytes_per_s)
        flops = 2.0 * a.query_heads / tp * (2 * a.kv_rank + a.rope_dim)
        return self._context_token_s(a.kv_elements * width, flops, self.gpu.flops["bf16"])

    def _context_token_s(self, moved_bytes: float, flops: float, rate: float) -> float:
        c = self.coefficients
        memory_s = np.array(moved_bytes / (c.decode_attention_memory * self.gpu.memory_bytes_per_s))
        compute_s = np.array(flops / (c.prefill_attention_compute * rate))
        return float(p_norm(compute_s, memory_s, c.head_gemm[3]))

    def _pair_s(self) -> float:
        """Prefill attention per query-key pair in one layer."""
        a, tp = self.model.attention, self.parallelism.tp
        if isinstance(a, GroupedQueryAttention):
            flops = 4.0 * a.query_heads / tp * a.head_dim
        else:
            flops = 2.0 * a.query_heads / tp * (a.nope_dim + a.rope_dim + a.value_dim)
        return flops / (self.coefficients.prefill_attention_compute * self.gpu.flops["bf16"])


@dataclass(frozen=True, slots=True)
class Affine:
    """``t_prefill = a0 + a1 n + a2 n^2`` and ``t_decode = b0 + b1 B + b2 sum(c)``, seconds."""

    a0: float
    a1: float
    a2: float
    b0: float
    b1: float
    b2: float


def timing_model(
    model: Model,
    gpu: Gpu,
    parallelism: Parallelism,
    *,
    weights_dtype: str | None = None,
    kv_cache_dtype: str = "bf16",
    framework: str = "vllm",
    disaggregated: bool = False,
    level: int = 2,
    file: str | Path | None = None,
) -> TimingModel:
    """Return the timing model of an engine.

    ``level`` 1 uses data-sheet rates with default efficiencies, 2 (default) the efficiencies fitted
    to end-to-end measurements where there are any; ``file`` overrides them with one's own. Level 0
    is ``affine()`` of either. See ``measured`` for files that hold a whole engine's times.

    Raises:
        InputError: ``file`` cannot be used.
    """
    dtype = weights_dtype or model.native_dtype
    coefficients = coefficients_for(
        gpu,
        dtype,
        framework,
        kind=model_kind(model),
        disaggregated=disaggregated,
        fitted=level >= 2,
        file=file,
    )
    return TimingModel(model, gpu, parallelism, dtype, kv_cache_dtype, coefficients)


def model_kind(model: Model) -> str:
    """Return what engines treat alike: ``dense``, ``moe``, ``mla``, ``sparse`` or ``linear``."""
    if model.linear_attention is not None:
        return "linear"
    if not isinstance(model.attention, GroupedQueryAttention):
        return "mla" if model.attention.sparse_top_k is None else "sparse"
    return "moe" if model.moe is not None else "dense"


def graph_size(batch: Floats) -> Floats:
    """Return the batch padded to the sizes CUDA graphs are captured for: 1, 2, 4, 8, 16, 24, ..."""
    b = np.asarray(batch, np.float64)
    small = np.where(b <= 2, b, 4.0)
    padded = np.where(b <= 4, small, 8.0 * np.ceil(b / 8.0))
    return np.where(b > LARGEST_GRAPH, b, padded)


def pairs(new: int, past: int) -> float:
    """Return the query-key pairs of a chunk under a causal mask."""
    return new * past + new * (new + 1) / 2.0


def window_pairs(new: int, past: int, window: int) -> float:
    """Return the pairs of a chunk where each query sees at most ``window`` keys."""
    growing = min(max(window - past, 0), new)
    return pairs(growing, past) + (new - growing) * window if window else 0.0


@lru_cache(maxsize=256)
def _compile(model: TimingModel, max_tokens: int, max_seqs: int) -> CompiledTiming:
    sequences = np.arange(max_seqs + 1, dtype=np.float64)
    units = model.parallelism.dp
    group = np.arange(min(units * max_tokens, LARGEST_GROUP) + 1, dtype=np.float64)
    return CompiledTiming(
        tokens_s=model.tokens_s(np.arange(max_tokens + 1, dtype=np.float64)),
        decode_s=model.decode_tokens_s(sequences),
        logits_s=model.logits_s(sequences),
        context_s=model.context_s,
        window_context_s=model.window_context_s,
        window=model.window,
        decode_fixed_s=model.decode_fixed_s,
        prefill_fixed_s=model.prefill_fixed_s,
        work_s=model.work_s,
        window_work_s=model.window_work_s,
        experts_s=model.experts_s(group) if units > 1 else np.zeros(2),
    )
