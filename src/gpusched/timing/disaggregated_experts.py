"""Time of an iteration where experts have GPUs of their own, after FinDEP (arXiv 2512.21487).

``attention_gpus`` each hold attention, shared experts and the KV cache of their own requests; a batch
is split evenly over them. ``expert_gpus`` share the routed experts. Every layer is a round trip; how
it is cut into micro-batches and pieces is chosen for every batch size.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from gpusched.domain.gpu import Gpu
from gpusched.domain.model import Model
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.timing.coefficients import Coefficients
from gpusched.timing.compiled import CompiledTiming
from gpusched.timing.iteration import TimingModel
from gpusched.timing.operators import ACTIVATION_BYTES, Floats
from gpusched.timing.overlap import Schedule, best_schedule

MICRO_BATCHES = np.arange(1, 9)
PIECES = np.array([1, 2, 3, 4, 6, 8, 12, 16])
GRID = 96
"""Batch sizes at which the schedule is solved; times between are interpolated."""
REFERENCE_BATCHES = (8.0, 64.0, 256.0)
REFERENCE_TOKENS = (512.0, 2048.0)
CONTEXT_TOKENS = 1024.0


@dataclass(frozen=True)
class DisaggregatedExperts:
    """One replica with attention and experts on different GPUs, of one type.

    It stands in for a ``TimingModel`` where that is compiled for the simulator.
    """

    attention: TimingModel
    """One attention GPU's engine, not parallel."""
    attention_gpus: int
    expert_gpus: int
    imbalance: float = 1.0
    """Work of the busiest expert GPU over the mean."""
    context_tokens: float = CONTEXT_TOKENS
    """Typical context, at which iteration times are exact; around it they are linear."""

    def __post_init__(self) -> None:
        moe = self.attention.model.moe
        if moe is None:
            raise InputError(f"expert_gpus: {self.attention.model.name} has no experts")
        if min(self.attention_gpus, self.expert_gpus) < 1:
            raise InputError("attention_gpus and expert_gpus must be at least 1")
        if self.expert_gpus > moe.experts:
            raise InputError(
                f"expert_gpus: {self.expert_gpus} for {moe.experts} experts; a GPU holds whole experts"
            )
        if not 1 <= self.imbalance < np.inf:
            raise InputError(f"expert_imbalance: must be at least 1, got {self.imbalance:g}")
        if not 0 < self.context_tokens < np.inf:
            raise InputError(f"context_tokens: must be positive, got {self.context_tokens:g}")

    @property
    def model(self) -> Model:
        """The model served."""
        return self.attention.model

    @property
    def gpu(self) -> Gpu:
        """Type of all GPUs."""
        return self.attention.gpu

    @property
    def weights_dtype(self) -> str:
        """Format of the weights."""
        return self.attention.weights_dtype

    @property
    def parallelism(self) -> Parallelism:
        """All GPUs, as ranks that share experts."""
        gpus = self.attention_gpus + self.expert_gpus
        return Parallelism(dp=gpus, ep=gpus)

    @property
    def coefficients(self) -> Coefficients:
        """Those of the engines; nobody has measured them apart."""
        return replace(self.attention.coefficients, calibration=None)

    @cached_property
    def _experts(self) -> TimingModel:
        ranks = self.expert_gpus
        side = replace(self.attention, parallelism=Parallelism(dp=ranks, ep=ranks))
        return side.at_imbalance(self.imbalance) if ranks > 1 else side

    def expert_s(self, tokens: Floats) -> Floats:
        """Return one layer's experts on the busiest GPU for ``tokens`` of all attention GPUs."""
        return np.asarray(self._experts.experts_s(tokens) / self.model.moe_layers)

    def exchange_s(self, tokens: Floats) -> Floats:
        """Return one direction of one layer's exchange; the busier side bounds it. A token goes once
        to a GPU however many of its experts lie there."""
        moe, c, gpu, eg = self.model.moe, self.attention.coefficients, self.gpu, self.expert_gpus
        assert moe is not None
        visited = eg * (1.0 - (1.0 - 1.0 / eg) ** moe.top_k)
        sent_bytes = np.asarray(tokens) * visited * self.model.hidden * ACTIVATION_BYTES
        inside = self.attention_gpus + eg <= gpu.gpus_per_node
        rate = c.link_memory * (gpu.link_bytes_per_s if inside else gpu.nic_bytes_per_s)
        busiest = np.maximum(sent_bytes / self.attention_gpus, sent_bytes * self.imbalance / eg)
        return np.asarray(c.link_latency_s + busiest / rate)

    def schedule(self, tokens: float, context_s: float, launch_s: float) -> Schedule:
        """Return the best cut of a batch of ``tokens`` over all attention GPUs.

        ``context_s`` is what attention adds by context to all layers of the batch, if one GPU did it
        all; ``launch_s`` what it adds to all layers whatever the batch.
        """
        ag, layers = self.attention_gpus, self.model.layers
        own = tokens / ag
        r1 = MICRO_BATCHES[max(own, 1.0) >= MICRO_BATCHES]
        parts = self.attention.layer_parts_s(own / r1)
        attention_s = parts.attention_s + (context_s / ag / r1 + launch_s) / layers
        pieces = tokens / (r1[:, None] * PIECES)
        return best_schedule(
            self.model.moe_layers, r1, PIECES, attention_s, parts.shared_s,
            self.expert_s(pieces), self.exchange_s(pieces), np.ones(len(r1)),
        )  # fmt: skip

    def layers_s(self, tokens: float, context_s: float, launch_s: float) -> float:
        """Return the time of all layers; those without experts run on the attention GPUs alone."""
        if tokens <= 0:
            return 0.0
        span = self.schedule(tokens, context_s, launch_s).makespan_s
        dense = self.model.layers - self.model.moe_layers
        if dense:
            own = np.array(tokens / self.attention_gpus)
            parts = self.attention.layer_parts_s(own)
            by_context = (context_s / self.attention_gpus + launch_s) / self.model.layers
            span += dense * float(parts.attention_s + parts.dense_s + by_context)
        return span

    def _decode_context_s(self, batch: float, context: float) -> float:
        a = self.attention
        return batch * (a.context_s * context + a.window_context_s * min(context, a.window))

    def _prefill_context_s(self, tokens: float, prompt: float) -> float:
        a, inside = self.attention, min(prompt, float(self.attention.window))
        windowed = (inside * (inside + 1) / 2 + (prompt - inside) * a.window) / prompt
        return tokens * (a.work_s * (prompt + 1) / 2 + a.window_work_s * windowed)

    def decode_s(self, batch: int, context: float) -> float:
        """Return a decode step of ``batch`` requests of equal context over all attention GPUs."""
        span = self.layers_s(
            batch, self._decode_context_s(batch, context), self.attention.decode_fixed_s
        )
        return span + self._head_s(batch) + self.attention.coefficients.host_s

    def prefill_s(self, tokens: int, prompt: int | None = None) -> float:
        """Return a prefill iteration of ``tokens`` of prompts of ``prompt`` tokens, one if not given."""
        length = float(prompt or tokens)
        span = self.layers_s(
            tokens, self._prefill_context_s(tokens, length), self.attention.prefill_fixed_s
        )
        return span + self._head_s(tokens / length) + self.attention.coefficients.host_s

    def _head_s(self, sequences: float) -> float:
        return float(self.attention.logits_s(np.array(sequences / self.attention_gpus)))

    def compile(self, max_tokens: int = 8192, max_seqs: int = 1024) -> CompiledTiming:
        """Return the replica as arrays for batches of up to the given sizes.

        Attention that overlaps with experts does not add to an iteration in full. One share for
        decodes and one for prompts, fitted around the typical context, says how much of it shows.
        """
        return _compile(self, max_tokens, max_seqs)


def _share_that_shows(groups: list[list[tuple[float, float]]]) -> float:
    """Return the mean slope of time against attention by context over groups of such pairs, in
    [0, 1]."""
    slopes = []
    for pairs in groups:
        x, y = (np.array(pairs) - np.mean(pairs, axis=0)).T
        slopes.append(float((x * y).sum() / (x * x).sum()))
    return min(max(float(np.mean(slopes)), 0.0), 1.0)


@lru_cache(maxsize=64)
def _compile(model: DisaggregatedExperts, max_tokens: int, max_seqs: int) -> CompiledTiming:
    a, ag, c0 = model.attention, model.attention_gpus, model.context_tokens
    host_s = a.coefficients.host_s
    spread = (0.5 * c0, c0, 2.0 * c0)
    decode = _share_that_shows(
        [
            [
                (x / ag, model.layers_s(b, x, a.decode_fixed_s))
                for x in (model._decode_context_s(b, c) for c in spread)
            ]
            for b in REFERENCE_BATCHES
        ]
    )
    prefill = _share_that_shows(
        [
            [
                (x / ag, model.layers_s(n, x, a.prefill_fixed_s))
                for x in (model._prefill_context_s(n, c) for c in spread)
            ]
            for n in REFERENCE_TOKENS
        ]
    )

    def table(most: int, share: float, launch_s: float, by_context: Floats) -> Floats:
        """Times of batches of 0 to ``most`` without what shows of attention by context."""
        whole = np.arange(most + 1, dtype=np.float64)
        grid = np.unique(np.rint(np.geomspace(1, most, min(GRID, most))))
        times = [
            model.layers_s(n, x, launch_s) - share * x / ag + host_s
            for n, x in zip(grid, np.interp(grid, whole, by_context), strict=True)
        ]
        values = np.asarray(np.maximum(np.interp(whole, grid, times), 0.0), np.float64)
        values[0] = 0.0
        return values

    sequences = np.arange(max_seqs + 1, dtype=np.float64)
    tokens = np.arange(max_tokens + 1, dtype=np.float64)
    logits_s = a.logits_s(sequences / ag)
    decodes = np.array([model._decode_context_s(b, c0) for b in sequences])
    prompts = np.array([model._prefill_context_s(n, c0) for n in tokens])
    return CompiledTiming(
        tokens_s=table(max_tokens, prefill, a.prefill_fixed_s, prompts),
        decode_s=table(max_seqs, decode, a.decode_fixed_s, decodes) + logits_s,
        logits_s=logits_s,
        context_s=decode * a.context_s / ag,
        window_context_s=decode * a.window_context_s / ag,
        window=a.window,
        decode_fixed_s=prefill * a.decode_fixed_s,
        prefill_fixed_s=0.0,
        work_s=prefill * a.work_s / ag,
        window_work_s=prefill * a.window_work_s / ag,
    )
