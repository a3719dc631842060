"""KServe: an LLMInferenceService (``serving.kserve.io/v1alpha2``) a mixed pool or prefill/decode pair."""

from typing import Any

from gpusched.domain.plan import PlannedPool
from gpusched.errors import InputError
from gpusched.integrations.export.flags import (
    arguments,
    command_line,
    engine_options,
    parallel_options,
)
from gpusched.integrations.export.kubernetes import (
    dump,
    gpu_limits,
    kubernetes_notes,
    nixl_environment,
    node_selector,
    weights_uri,
)
from gpusched.integrations.export.releases import Document, Release, pair

_SPANNING = ("tensor_parallel_size", "data_parallel_size", "enable_expert_parallel")
"""Options that KServe writes itself from ``parallelism``, where a replica spans nodes."""


def inference_services(parts: tuple[Release, ...], image: str | None = None) -> list[Document]:
    """Return the services; those of several mixed pools differ in name and serve one model.

    Raises:
        InputError: a replica whose tensors or pipeline span nodes, or several pools of a role.
    """
    documents = []
    for part in parts:
        if part.disaggregated:
            decode, prefill = pair(part, "kserve")
            documents.append(_service(part, part.name, image, decode, prefill))
            continue
        for pool in part.pools:
            single = len(part.pools) == 1
            name = part.name if single else f"{part.name}-{part.pool_name(pool)}"
            documents.append(_service(part, name, image, pool))
    return documents


def _service(
    release: Release,
    name: str,
    image: str | None,
    pool: PlannedPool,
    prefill: PlannedPool | None = None,
) -> Document:
    spec: dict[str, Any] = {
        "model": {"uri": weights_uri(release), "name": release.model},
        **_workload(release, pool, image),
        "router": {"route": {}, "gateway": {}, "scheduler": {}},
    }
    if prefill is not None:
        spec["prefill"] = _workload(release, prefill, image)
    document = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": name},
        "spec": spec,
    }
    notes = list(kubernetes_notes(release))
    if len(release.pools) > 1 and prefill is None:
        notes.append(
            "each mixed pool is a service of its own; divide the traffic over them by replicas"
        )
    return Document(name, dump(document, release.plan.summary), tuple(notes))


def _workload(release: Release, pool: PlannedPool, image: str | None) -> dict[str, Any]:
    """Return replicas, parallelism and pods of one role."""
    nodes = release.nodes_per_replica(pool)
    if nodes > 1 and pool.data_parallel_size % nodes:
        raise InputError(
            f"pool {pool.name}: a replica spans {nodes} nodes by {pool.layout}; KServe spreads only "
            "data-parallel ranks over nodes (--to vllm and --to dynamo can express it)"
        )
    parallelism: dict[str, Any] = {"tensor": pool.tensor_parallel_size}
    set_by_kserve: tuple[str, ...] = ("tensor_parallel_size",)
    if nodes > 1:
        set_by_kserve = _SPANNING
        parallelism |= {
            "data": pool.data_parallel_size,
            "dataLocal": pool.data_parallel_size // nodes,
            "expert": pool.enable_expert_parallel,
        }
    options = parallel_options(pool) | engine_options(release, pool)
    extra = arguments({k: v for k, v in options.items() if k not in set_by_kserve})
    container: dict[str, Any] = {
        "name": "main",
        "env": [{"name": "VLLM_ADDITIONAL_ARGS", "value": command_line(extra)}],
        "resources": {"limits": gpu_limits(release, pool)},
    }
    if image is not None:
        container["image"] = image
    if pool.role != "mixed":
        container["env"] += nixl_environment()
    pod: dict[str, Any] = {"containers": [container]}
    if selector := node_selector(release, pool):
        pod["nodeSelector"] = selector
    workload: dict[str, Any] = {
        "replicas": pool.replicas,
        "parallelism": parallelism,
        "template": pod,
    }
    if nodes > 1:
        workload["worker"] = pod
    return workload
