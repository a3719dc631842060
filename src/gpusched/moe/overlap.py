"""How to cut a batch where experts have GPUs of their own: FinDEP's solver (arXiv 2512.21487).

Times are affine in the micro-batch: attention and shared experts in samples, experts and exchange in
tokens per expert. The solver looks at the largest micro-batch for every number of them, since
throughput grows with both (theorems 1 to 4), at every number of pieces and at both orders.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.domain.dtypes import KV_BYTES
from gpusched.domain.engine import EngineSettings
from gpusched.domain.gpu import Gpu
from gpusched.domain.model import GroupedQueryAttention, Model
from gpusched.errors import InfeasibleError, InputError
from gpusched.timing.memory import disaggregated_memory
from gpusched.timing.overlap import LARGEST_R1, Order, best_schedule

R1_CAP, R2_CAP = 8, 16


class Affine(NamedTuple):
    """``max(floor_s, fixed_s + unit_s x)``."""

    fixed_s: float
    unit_s: float
    floor_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LinearFit:
    """Times measured as ``fixed + slope * size``, in seconds; sizes are multiply-adds, query-key
    multiply-adds, and elements sent."""

    gemm: Affine
    attention: Affine
    exchange: Affine

    def __post_init__(self) -> None:
        for name in ("gemm", "attention", "exchange"):
            if not all(0 <= value < np.inf for value in getattr(self, name)):
                raise InputError(
                    f"{name}: must be finite and at least 0, got {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True)
class OverlapCosts:
    """Times of one layer as functions of the cut."""

    layers: int
    attention: Affine
    """Of one attention GPU, by samples of a micro-batch."""
    shared: Affine
    expert: Affine
    """Of the experts of one GPU, by tokens of each expert in a piece."""
    exchange: Affine
    """Of one direction of the link, by tokens of each expert in a piece."""
    attention_gpus: int
    tokens_per_sample: float
    """Prompt tokens; 1 in decode."""
    top_k: int
    experts: int

    def __post_init__(self) -> None:
        for name in ("attention", "shared", "expert", "exchange"):
            if not all(0 <= value < np.inf for value in getattr(self, name)):
                raise InputError(
                    f"{name}: must be finite and at least 0, got {getattr(self, name)}"
                )
        if min(self.layers, self.attention_gpus, self.top_k, self.experts) < 1:
            raise InputError("layers, attention_gpus, top_k and experts must be at least 1")
        if not 0 < self.tokens_per_sample < np.inf:
            raise InputError(f"tokens_per_sample: must be positive, got {self.tokens_per_sample:g}")

    @property
    def expert_tokens_per_sample(self) -> float:
        """Tokens of each expert for one sample on every attention GPU (conservation, A8)."""
        return self.attention_gpus * self.top_k * self.tokens_per_sample / self.experts


class Overlap(NamedTuple):
    """A cut, its order and what it gives."""

    samples: int
    """Of one micro-batch on one attention GPU."""
    r1: int
    r2: int
    order: Order
    makespan_s: float
    samples_per_s: float
    """Of all attention GPUs."""

    def pieces(self, tokens: int) -> list[int]:
        """Return the tokens of each piece of a micro-batch's ``tokens``; the last takes the rest."""
        each = tokens // self.r2
        return [each] * (self.r2 - 1) + [tokens - each * (self.r2 - 1)]


@lru_cache(maxsize=4096)
def solve_overlap(
    costs: OverlapCosts,
    max_samples: int,
    *,
    r1_cap: int = R1_CAP,
    r2_cap: int = R2_CAP,
    least_tokens: float = 0.0,
    orders: bool = True,
) -> Overlap:
    """Return the cut with the most samples per second, with at most ``max_samples`` on an attention
    GPU at once.

    Pieces with fewer than ``least_tokens`` tokens of each expert are not tried beyond one piece;
    without ``orders`` only ASAS is. Answers are kept, so that the same batch costs nothing again.

    Raises:
        InputError: sizes below 1, or r1 above 64.
    """
    if min(max_samples, r1_cap, r2_cap) < 1 or r1_cap > LARGEST_R1:
        raise InputError(
            f"max_samples, r1_cap and r2_cap must be at least 1 and r1_cap at most {LARGEST_R1}, "
            f"got {max_samples}, {r1_cap}, {r2_cap}"
        )
    return _solve(costs, max_samples, r1_cap, r2_cap, least_tokens, orders, False)


def ping_pong(costs: OverlapCosts, max_samples: int, *, r1_cap: int = R1_CAP) -> Overlap:
    """Return the best ping-pong pipeline (PPPipe, MegaScale-Infer): micro-batches of one piece, with
    the shared expert as part of attention."""
    return _solve(costs, max_samples, r1_cap, 1, 0.0, False, True)


def no_overlap(costs: OverlapCosts, max_samples: int) -> Overlap:
    """Return the whole batch in one piece, attention and experts by turns."""
    return solve_overlap(costs, max_samples, r1_cap=1, r2_cap=1)


def _solve(
    costs: OverlapCosts, max_samples: int, r1_cap: int, r2_cap: int, least_tokens: float,
    orders: bool, joined: bool,
) -> Overlap:  # fmt: skip
    """Search; ``joined`` takes the shared expert for a part of attention."""
    r1 = np.array(
        sorted({min(r1_cap, max_samples // m) for m in _micro_batches(max_samples)}), np.int64
    )
    samples = max_samples // r1
    r2 = np.arange(1, r2_cap + 1)
    tokens = costs.expert_tokens_per_sample * samples[:, None] / r2
    too_small = (tokens < least_tokens) & (r2 > 1)
    expert_s = np.where(too_small, np.inf, _times(costs.expert, tokens))
    attention_s, shared_s = _times(costs.attention, samples), _times(costs.shared, samples)
    if joined:
        attention_s, shared_s = attention_s + shared_s, np.zeros_like(shared_s)
    found = best_schedule(
        costs.layers, r1, r2, attention_s, shared_s,
        expert_s, _times(costs.exchange, tokens), (r1 * samples * costs.attention_gpus).astype(float),
        aass=orders,
    )  # fmt: skip
    i = found.candidate
    rate = int(r1[i] * samples[i]) * costs.attention_gpus / found.makespan_s
    return Overlap(int(samples[i]), int(r1[i]), found.r2, found.order, found.makespan_s, rate)


def _micro_batches(max_samples: int) -> Iterator[int]:
    """Yield one micro-batch size for each distinct number of micro-batches."""
    size = 1
    while size <= max_samples:
        yield size
        size = max_samples // (max_samples // size) + 1


def _times(cost: Affine, size: ArrayLike) -> NDArray[np.float64]:
    times = cost.fixed_s + cost.unit_s * np.asarray(size, np.float64)
    return np.asarray(np.maximum(cost.floor_s, times), np.float64)


def prefill_costs(
    model: Model, fit: LinearFit, attention_gpus: int, expert_gpus: int, sequence: int,
    *, layers: int | None = None,
) -> OverlapCosts:  # fmt: skip
    """Return the costs of prefilling samples of ``sequence`` tokens, from a linear fit (A1 to A7).

    Raises:
        InputError: a model without experts, or more expert GPUs than experts.
    """
    moe, h, a = model.moe, model.hidden, model.attention
    if moe is None:
        raise InputError(f"model: {model.name} has no experts")
    if min(attention_gpus, expert_gpus, sequence) < 1 or expert_gpus > moe.experts:
        raise InputError(
            "attention_gpus, expert_gpus and sequence must be at least 1, expert_gpus at most "
            f"{moe.experts}"
        )
    if isinstance(a, GroupedQueryAttention):
        wide = a.query_heads * a.head_dim
        gemms = [h * wide, h * a.kv_heads * a.head_dim, h * a.kv_heads * a.head_dim, wide * h]
        pair = 2 * a.head_dim * a.query_heads
    else:
        queries = a.query_heads * (a.nope_dim + a.rope_dim)
        down = [h * a.query_rank, a.query_rank * queries] if a.query_rank else [h * queries]
        gemms = [
            *down, h * (a.kv_rank + a.rope_dim),
            a.kv_rank * a.query_heads * (a.nope_dim + a.value_dim), a.query_heads * a.value_dim * h,
        ]  # fmt: skip
        pair = a.query_heads * (a.nope_dim + a.rope_dim + a.value_dim)
    per_gpu = moe.experts / expert_gpus
    gemm, attention, exchange = fit.gemm, fit.attention, fit.exchange
    shared = 3 if moe.shared_dim else 0
    return OverlapCosts(
        layers=layers or model.moe_layers,
        attention=Affine(
            len(gemms) * gemm.fixed_s + attention.fixed_s,
            gemm.unit_s * sequence * sum(gemms) + attention.unit_s * sequence**2 * pair,
        ),
        shared=Affine(shared * gemm.fixed_s, shared * gemm.unit_s * sequence * h * moe.shared_dim),
        expert=Affine(3 * per_gpu * gemm.fixed_s, 3 * per_gpu * gemm.unit_s * h * moe.expert_dim),
        exchange=Affine(exchange.fixed_s, exchange.unit_s * per_gpu * h),
        attention_gpus=attention_gpus,
        tokens_per_sample=sequence,
        top_k=moe.top_k,
        experts=moe.experts,
    )


def samples_that_fit(
    model: Model, gpu: Gpu, attention_gpus: int, expert_gpus: int, tokens: int,
    *, weights_dtype: str, kv_cache_dtype: str = "bf16", engine: EngineSettings | None = None,
) -> int:  # fmt: skip
    """Return how many samples of ``tokens`` tokens, answers included, an attention GPU holds (A21).

    Raises:
        InfeasibleError: weights do not fit on the attention or on the expert GPUs.
    """
    settings = engine or EngineSettings()
    use, needed = disaggregated_memory(
        model, gpu, attention_gpus, expert_gpus, settings, weights_dtype=weights_dtype,
        kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=tokens * attention_gpus,
    )  # fmt: skip
    budget = settings.gpu_memory_utilization * gpu.memory_bytes
    if needed > budget:
        raise InfeasibleError(
            f"an expert GPU needs {needed / 1e9:.1f} GB but may use {budget / 1e9:.1f} GB of a "
            f"{gpu.name}; use more than {expert_gpus} expert GPUs"
        )
    in_flight = 6.0 * tokens * model.hidden * 2.0
    sample = model.kv_bytes_per_token(KV_BYTES[kv_cache_dtype]) * tokens + in_flight
    if use.kv_bytes < sample:
        raise InfeasibleError(
            f"an attention GPU has {max(use.kv_bytes, 0) / 1e9:.1f} GB beside its weights, less "
            f"than one sample of {tokens} tokens ({sample / 1e9:.2f} GB)"
        )
    return int(use.kv_bytes // sample)


class Split(NamedTuple):
    """How many GPUs attention and experts get."""

    attention_gpus: int
    expert_gpus: int
    overlap: Overlap


def best_split(
    gpus: int,
    costs_of: Callable[[int, int], OverlapCosts],
    samples_of: Callable[[int, int], int],
) -> Split:
    """Return the division of ``gpus`` into attention and expert GPUs with the most samples per second.

    ``costs_of`` and ``samples_of`` take attention and expert GPUs; either may raise InfeasibleError or
    InputError for a division that cannot be.

    Raises:
        InfeasibleError: none can be, with the last reason.
    """
    best: Split | None = None
    reason = f"{gpus} GPUs cannot be divided in two"
    for attention_gpus in range(1, gpus):
        expert_gpus = gpus - attention_gpus
        try:
            costs = costs_of(attention_gpus, expert_gpus)
            found = solve_overlap(costs, samples_of(attention_gpus, expert_gpus))
        except (InfeasibleError, InputError) as error:
            reason = str(error)
            continue
        if best is None or found.samples_per_s > best.overlap.samples_per_s:
            best = Split(attention_gpus, expert_gpus, found)
    if best is None:
        raise InfeasibleError(reason)
    return best
