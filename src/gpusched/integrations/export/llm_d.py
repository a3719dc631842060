"""llm-d: values of the chart ``llm-d-modelservice``, one release a mixed pool or prefill/decode pair."""

from math import ceil
from typing import Any

from gpusched.domain.catalog import load_model
from gpusched.domain.dtypes import WEIGHT_BYTES
from gpusched.domain.plan import PlannedPool
from gpusched.errors import InputError
from gpusched.integrations.export.flags import arguments, engine_options, parallel_options
from gpusched.integrations.export.kubernetes import (
    SIDE_CHANNEL_PORT,
    dump,
    gpu_limits,
    kubernetes_notes,
    nixl_environment,
    node_selector,
    weights_uri,
)
from gpusched.integrations.export.releases import Document, Release, dns_label, pair

IMAGE = "ghcr.io/llm-d/llm-d-cuda:v0.9.0"
SERVICE_PORT = 8000
SIDECAR_TARGET_PORT = 8200
"""Where a decode engine listens behind the routing sidecar."""
_SET_BY_CHART = ("tensor_parallel_size", "data_parallel_size")


def helm_values(parts: tuple[Release, ...], image: str | None = None) -> list[Document]:
    """Return values for each release of the chart.

    Raises:
        InputError: a replica that spans nodes, or more than one pool of a role.
    """
    documents = []
    for part in parts:
        for pool in part.pools:
            if part.nodes_per_replica(pool) > 1:
                raise InputError(
                    f"pool {pool.name}: a replica spans {part.nodes_per_replica(pool)} nodes; the "
                    "llm-d chart starts such engines only by a command of your own "
                    "(--to kserve or --to dynamo can express it)"
                )
        if part.disaggregated:
            documents.append(_values(part, part.name, image or IMAGE, *pair(part, "llm-d")))
        else:
            documents += [
                _values(
                    part,
                    part.name if len(part.pools) == 1 else f"{part.name}-{part.pool_name(pool)}",
                    image or IMAGE,
                    pool,
                )
                for pool in part.pools
            ]
    return documents


def _values(
    release: Release, name: str, image: str, pool: PlannedPool, prefill: PlannedPool | None = None
) -> Document:
    labels = {"llm-d.ai/inference-serving": "true", "llm-d.ai/model": dns_label(release.model)}
    document: dict[str, Any] = {
        "fullnameOverride": name,
        "multinode": False,
        "modelArtifacts": {
            "name": release.model,
            "uri": weights_uri(release),
            "size": f"{_volume_gib(release)}Gi",
            "authSecretName": "hf-token-secret",
            "labels": labels,
        },
        "routing": {
            "servicePort": SERVICE_PORT,
            "proxy": {
                "enabled": prefill is not None,
                "targetPort": SIDECAR_TARGET_PORT,
                "connector": "nixlv2",
                "secure": False,
            },
        },
        "decode": _role(release, pool, image, SIDECAR_TARGET_PORT if prefill else SERVICE_PORT),
        "prefill": _role(release, prefill, image, SERVICE_PORT) if prefill else {"create": False},
    }
    heading = f"values of a release of llm-d-modelservice: {release.plan.summary}"
    return Document(name, dump(document, heading), kubernetes_notes(release))


def _role(release: Release, pool: PlannedPool, image: str, port: int) -> dict[str, Any]:
    options = parallel_options(pool) | engine_options(release, pool)
    container: dict[str, Any] = {
        "name": "vllm",
        "image": image,
        "modelCommand": "vllmServe",
        "args": arguments({k: v for k, v in options.items() if k not in _SET_BY_CHART}),
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        "resources": {"limits": gpu_limits(release, pool)},
        "mountModelVolume": True,
    }
    if pool.role != "mixed":
        container["env"] = nixl_environment()
        container["ports"].append({"containerPort": SIDE_CHANNEL_PORT, "protocol": "TCP"})
    role: dict[str, Any] = {
        "create": True,
        "replicas": pool.replicas,
        "parallelism": {
            "tensor": pool.tensor_parallel_size,
            "data": pool.data_parallel_size,
            "dataLocal": pool.data_parallel_size,
            "workers": 1,
        },
        "containers": [container],
    }
    if selector := node_selector(release, pool):
        role["nodeSelector"] = selector
    return role


def _volume_gib(release: Release) -> int:
    """Return room for the published weights, a fifth more than they take."""
    model = load_model(release.plan.model)
    dtype = release.plan.weights_dtype if release.quantization is None else model.native_dtype
    return ceil(1.2 * model.parameters * WEIGHT_BYTES[dtype] / 2**30)
