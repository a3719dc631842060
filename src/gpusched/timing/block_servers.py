"""From a cluster and a model to servers of blocks: one server a node, its GPUs in tensor parallel."""

from dataclasses import dataclass

import numpy as np

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.cluster import Cluster
from gpusched.domain.dtypes import KV_BYTES
from gpusched.domain.engine import EngineSettings
from gpusched.domain.links import link_matrices
from gpusched.domain.parallel import Parallelism
from gpusched.timing.chains import BlockServers
from gpusched.timing.iteration import TimingModel, timing_model
from gpusched.timing.memory import memory, weights_bytes
from gpusched.timing.operators import ACTIVATION_BYTES

BUDGET_TOKENS = 2048
"""Prompt tokens of one iteration, for which working space is kept."""

DEFAULT_ENGINE = EngineSettings()


@dataclass(frozen=True)
class Serving:
    """What the nodes of a cluster run, and how much of it at once."""

    model: str
    weights_dtype: str
    kv_cache_dtype: str
    engine: EngineSettings = DEFAULT_ENGINE
    timing: str | None = None
    """Path of coefficients calibrated on one's own engines."""
    decode_batch: int = 1
    """Requests that decode together: the time of a token is that of a batch of so many."""
    prompt_tokens: float = 512.0
    """Mean; prefill times are linear around it."""
    output_tokens: float = 256.0

    def timing_model(self, gpu: str, gpus: int) -> TimingModel:
        """Return the timing model of a node."""
        return timing_model(
            load_model(self.model), load_gpu(gpu), Parallelism(tp=gpus),
            weights_dtype=self.weights_dtype, kv_cache_dtype=self.kv_cache_dtype,
            framework=self.engine.framework, file=self.timing,
        )  # fmt: skip


def block_servers(cluster: Cluster, serving: Serving) -> BlockServers:
    """Return the nodes as servers and the front as the only client.

    The client embeds tokens and samples them; it sends a token's activations to each server and gets
    them back, so a trip is the link's round trip, both transfers, and the server's work for an
    iteration outside its blocks. Blocks are alike: each takes a layer's mean time and weights.
    """
    model = load_model(serving.model)
    layers = model.layers
    bandwidth, latency = link_matrices(cluster)
    groups = [i for i, group in enumerate(cluster.nodes) for _ in range(group.count)]
    kinds = {}
    for index in dict.fromkeys(groups):
        kinds[index] = _node(serving, cluster.nodes[index].gpu, cluster.nodes[index].gpus_per_node)
    memory_bytes, decode_s, prefill_fixed, prefill_token, visit_s = np.array(
        [kinds[index] for index in groups]
    ).T
    with np.errstate(divide="ignore"):
        transfer_s = 2.0 * model.hidden * ACTIVATION_BYTES / bandwidth[-1, :-1]
    rtt_s = 2.0 * latency[-1, :-1]
    rtt_s = np.where(np.isfinite(transfer_s), rtt_s, np.inf)
    # links that are cut cost infinitely much at once, not a token
    reached = np.isfinite(transfer_s)
    fixed_s = np.where(reached, rtt_s + visit_s, np.inf)
    embeddings = model.embedding_parameters * (1 if model.tied_embeddings else 2)
    weights = weights_bytes(model, Parallelism(), serving.weights_dtype) - embeddings * 2.0
    return BlockServers(
        names=tuple(cluster.node_names),
        memory_bytes=memory_bytes,
        decode_block_s=decode_s.copy(),
        prefill_block_s=np.stack([prefill_fixed, prefill_token]),
        decode_trip_s=(fixed_s + np.where(reached, transfer_s, 0.0))[None, :],
        prefill_trip_s=np.stack([fixed_s[None, :], np.where(reached, transfer_s, 0.0)[None, :]]),
        client_rtt_s=rtt_s[None, :],
        server_rtt_s=2.0 * latency[:-1, :-1],
        blocks=layers,
        block_bytes=weights / layers,
        cache_token_bytes=model.kv_bytes_per_token(KV_BYTES[serving.kv_cache_dtype]) / layers,
    )


def _node(serving: Serving, gpu: str, gpus: int) -> tuple[float, float, float, float, float]:
    """Return memory for blocks and caches, a block's decode step, its prefill (fixed, a token) and
    the time of a visit outside blocks."""
    model = load_model(serving.model)
    timing = serving.timing_model(gpu, gpus)
    use = memory(
        model, load_gpu(gpu), Parallelism(tp=gpus), serving.engine,
        weights_dtype=serving.weights_dtype, kv_cache_dtype=serving.kv_cache_dtype,
        max_num_batched_tokens=serving.engine.max_num_batched_tokens or BUDGET_TOKENS,
    )  # fmt: skip
    bytes_ = gpus * (use.weights_bytes + use.kv_bytes)
    host_s = timing.coefficients.host_s
    batch = serving.decode_batch
    context = serving.prompt_tokens + serving.output_tokens / 2
    head_s = float(timing.logits_s(np.array(float(batch)))) + host_s
    decode_s = (timing.decode_s(batch, context) - head_s) / model.layers
    short, long = (max(int(serving.prompt_tokens * x), 1 + i) for i, x in enumerate((0.5, 2.0)))
    lone_s = float(timing.logits_s(np.array(1.0))) + host_s
    low_s, high_s = ((timing.prefill_s(n) - lone_s) / model.layers for n in (short, long))
    token_s = (high_s - low_s) / (long - short)
    return bytes_, decode_s, max(low_s - token_s * short, 0.0), token_s, host_s
