"""Transfer of a prompt's KV cache between replicas."""

from gpusched.domain.dtypes import KV_BYTES
from gpusched.domain.model import Model

RDMA_LATENCY_S = 50e-6
LINK_SHARE = 0.8


def kv_token_s(model: Model, kv_cache_dtype: str, link_bytes_per_s: float) -> float:
    """Return the seconds a token's KV cache, over all layers, takes on a link."""
    return model.kv_bytes_per_token(KV_BYTES[kv_cache_dtype]) / (LINK_SHARE * link_bytes_per_s)


def exposed_s(
    tokens: int, token_s: float, prefill_s: float, layers: int, latency_s: float = RDMA_LATENCY_S
) -> float:
    """Return what a layer-by-layer transfer adds after a prefill that hides part of it."""
    whole_s = tokens * token_s
    if whole_s <= prefill_s:
        return latency_s + whole_s / layers
    return latency_s + whole_s - prefill_s * (layers - 1) / layers
