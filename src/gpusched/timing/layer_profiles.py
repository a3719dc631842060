"""Layer profiles of a cluster's nodes from the timing model."""

from functools import lru_cache

import numpy as np

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.cluster import Cluster
from gpusched.domain.engine import EngineSettings
from gpusched.domain.links import link_matrices
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InfeasibleError
from gpusched.timing.iteration import timing_model
from gpusched.timing.layers import LayerProfile
from gpusched.timing.machines import Machines
from gpusched.timing.memory import memory

TOKEN_BYTES = 2.0
ACTIVATION_BYTES = 2.0
LEAST_KV_TOKENS = 2048
"""A node holds no more layers than leave this much context in each."""
LARGEST_PROMPT = 32_768
LARGEST_DECODE = 1024


@lru_cache(maxsize=256)
def layer_profile(
    model: str,
    gpu: str,
    gpus: int,
    *,
    weights_dtype: str,
    kv_cache_dtype: str = "bf16",
    context_tokens: int = 1024,
    nic_bytes_per_s: float = float("inf"),
    file: str | None = None,
) -> LayerProfile:
    """Return the profile of a node whose GPUs run each layer in tensor parallel.

    A layer takes an equal share of a whole model's iteration at this mean context. The host's work
    of each iteration is spread over as many layers as the node may hold with half of its memory.

    Raises:
        InfeasibleError: not one layer fits.
    """
    described, device = load_model(model), load_gpu(gpu)
    timing = timing_model(
        described, device, Parallelism(tp=gpus), weights_dtype=weights_dtype,
        kv_cache_dtype=kv_cache_dtype, file=file,
    )  # fmt: skip
    layers = described.layers
    use = memory(
        described, device, Parallelism(tp=gpus), EngineSettings(), weights_dtype=weights_dtype,
        kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=LEAST_KV_TOKENS,
    )  # fmt: skip
    layer_bytes = use.weights_bytes / layers
    kv_bytes = use.kv_bytes_per_token / layers
    held = np.arange(1, layers + 1)
    kv_tokens = (use.kv_bytes + use.weights_bytes - held * layer_bytes) / (held * kv_bytes)
    kv_tokens = np.floor(kv_tokens[kv_tokens >= LEAST_KV_TOKENS])
    if not len(kv_tokens):
        raise InfeasibleError(
            f"{gpus} x {gpu}: no layer of {model} fits beside {LEAST_KV_TOKENS} tokens of KV cache"
        )
    usual = max(min(int(device.memory_bytes / 2 / layer_bytes), len(kv_tokens)), 1)
    host_s = timing.coefficients.host_s
    prompts = np.concatenate(([0], 2 ** np.arange(4, int(np.log2(LARGEST_PROMPT)) + 1)))
    decodes = np.concatenate(([0, 1, 2, 4], np.arange(8, 129, 8), np.arange(160, 1025, 32)))
    prompt_s = np.array([timing.prefill_s(int(n)) if n else 0.0 for n in prompts])
    decode_s = np.array([timing.decode_s(int(n), context_tokens) if n else 0.0 for n in decodes])
    extra_s = host_s / usual - host_s / layers
    return LayerProfile(
        gpu if gpus == 1 else f"{gpus}x{gpu}",
        prompts.astype(np.float64),
        np.where(prompts > 0, prompt_s / layers + extra_s, 0.0),
        decodes.astype(np.float64),
        np.where(decodes > 0, decode_s / layers + extra_s, 0.0),
        kv_tokens,
        nic_bytes_per_s,
    )


def cluster_machines(
    cluster: Cluster,
    model: str,
    *,
    weights_dtype: str,
    kv_cache_dtype: str = "bf16",
    context_tokens: int = 1024,
    file: str | None = None,
) -> Machines:
    """Return a cluster's nodes with the profiles of one model.

    Raises:
        InfeasibleError: some node cannot hold a single layer.
    """
    kinds = []
    for index, group in enumerate(cluster.nodes):
        nic = cluster.inter_node_bytes_per_s(index) * group.gpus_per_node
        kinds.append(
            layer_profile(
                model, group.gpu, group.gpus_per_node, weights_dtype=weights_dtype,
                kv_cache_dtype=kv_cache_dtype, context_tokens=context_tokens,
                nic_bytes_per_s=nic, file=file,
            )
        )  # fmt: skip
    bandwidth, latency = link_matrices(cluster)
    described = load_model(model)
    return Machines(
        tuple(cluster.node_names),
        tuple(group.region for group in cluster.nodes for _ in range(group.count)),
        np.repeat(np.arange(len(cluster.nodes)), [group.count for group in cluster.nodes]),
        tuple(kinds),
        bandwidth,
        latency,
        described.layers,
        TOKEN_BYTES,
        ACTIVATION_BYTES * described.hidden,
    )
