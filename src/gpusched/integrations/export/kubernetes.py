"""What all Kubernetes targets share: GPUs of a container, nodes of a GPU type, YAML."""

from typing import Any

import yaml

from gpusched.domain.catalog import load_gpu
from gpusched.domain.plan import PlannedPool
from gpusched.errors import InputError
from gpusched.integrations.export.releases import Release
from gpusched.integrations.export.scheduler import needs_plug_in

_PRODUCTS = {
    "a100_sxm": "NVIDIA-A100-SXM4-80GB",
    "h100_sxm": "NVIDIA-H100-80GB-HBM3",
    "h200_sxm": "NVIDIA-H200",
    "b200_sxm": "NVIDIA-B200",
    "l4": "NVIDIA-L4",
    "l40s": "NVIDIA-L40S",
    "a10g": "NVIDIA-A10G",
    "t4": "Tesla-T4",
}
"""Label ``nvidia.com/gpu.product`` by GPU feature discovery: the driver's product name."""

PLUG_IN_NOTE = (
    "the engines run a policy of gpusched by its scheduler for vLLM, which this version lacks"
)
SIDE_CHANNEL_PORT = 5600


def gpu_limits(release: Release, pool: PlannedPool) -> dict[str, str]:
    """Return the GPUs of one pod, as resource limits."""
    vendor = "amd.com/gpu" if load_gpu(pool.gpu).vendor.lower() == "amd" else "nvidia.com/gpu"
    return {vendor: str(pool.parallelism.gpus // release.nodes_per_replica(pool))}


def node_selector(release: Release, pool: PlannedPool) -> dict[str, str]:
    """Return the label of a pool's nodes, where the cluster has several GPU types."""
    if len({group.gpu for group in release.plan.cluster.nodes}) == 1 or pool.gpu not in _PRODUCTS:
        return {}
    return {"nvidia.com/gpu.product": _PRODUCTS[pool.gpu]}


def kubernetes_notes(release: Release) -> tuple[str, ...]:
    """Return what the user must see to in a cluster."""
    notes = []
    if any(needs_plug_in(pool) for pool in release.pools):
        notes.append(PLUG_IN_NOTE)
    if len({group.gpu for group in release.plan.cluster.nodes}) > 1:
        notes += [
            f"pool {pool.name}: no node label of {pool.gpu} is known; add a nodeSelector"
            for pool in release.pools
            if pool.gpu not in _PRODUCTS
        ]
    return tuple(notes)


def nixl_environment() -> list[dict[str, Any]]:
    """Return where an engine's KV cache can be fetched: the pod's own address."""
    return [
        {
            "name": "VLLM_NIXL_SIDE_CHANNEL_HOST",
            "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}},
        },
        {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(SIDE_CHANNEL_PORT)},
    ]


def weights_uri(release: Release) -> str:
    """Return where pods fetch the weights.

    Raises:
        InputError: they lie in a folder of this machine.
    """
    checkpoint = release.checkpoint
    if "://" in checkpoint:
        return checkpoint
    if checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") != 1:
        raise InputError(
            f"model {release.model}: pods cannot read its weights from {checkpoint!r}; name a "
            "Hugging Face id or a URI such as pvc://claim/path with --checkpoint"
        )
    return f"hf://{checkpoint}"


def dump(document: dict[str, Any], heading: str) -> str:
    """Return a document as YAML under a comment."""
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return f"# {heading}\n{body}"
