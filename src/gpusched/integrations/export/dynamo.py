"""NVIDIA Dynamo: a DynamoGraphDeployment (``nvidia.com/v1beta1``), one component a pool."""

from typing import Any

from gpusched.domain.plan import PlannedPool
from gpusched.integrations.export.flags import (
    Options,
    arguments,
    engine_options,
    parallel_options,
)
from gpusched.integrations.export.kubernetes import (
    dump,
    gpu_limits,
    kubernetes_notes,
    node_selector,
)
from gpusched.integrations.export.releases import Document, Release

IMAGE = "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1"
TOKEN_SECRET = "hf-token-secret"
_TYPES = {"mixed": "worker", "prefill": "prefill", "decode": "decode"}
_KV_EVENTS = {
    "publisher": "zmq",
    "topic": "kv-events",
    "endpoint": "tcp://*:20080",
    "enable_kv_cache_events": True,
}


def graph_deployments(parts: tuple[Release, ...], image: str | None = None) -> list[Document]:
    """Return one graph a model: a frontend that routes, and a component for each pool."""
    return [_graph(part, image or IMAGE) for part in parts]


def _graph(release: Release, image: str) -> Document:
    mode = router_mode(release.plan.routing)
    frontend = {
        "name": "Frontend",
        "type": "frontend",
        "replicas": 1,
        "podTemplate": {
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "image": image,
                        "env": [{"name": "DYN_ROUTER_MODE", "value": mode}],
                    }
                ]
            }
        },
    }
    document = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": release.name},
        "spec": {
            "backendFramework": "vllm",
            "components": [
                frontend,
                *(_component(release, pool, image, mode) for pool in release.pools),
            ],
        },
    }
    notes = [*kubernetes_notes(release), f"weights of gated models need the secret {TOKEN_SECRET}"]
    if release.plan.routing not in ("round-robin", "random", "prefix-affinity"):
        notes.append(f"Dynamo has no routing {release.plan.routing}; its own mode {mode} is set")
    return Document(release.name, dump(document, release.plan.summary), tuple(notes))


def _component(release: Release, pool: PlannedPool, image: str, mode: str) -> dict[str, Any]:
    options: Options = {"model": release.checkpoint, "served_model_name": release.model}
    options |= parallel_options(pool) | engine_options(release, pool)
    if pool.role != "mixed":
        options["disaggregation_mode"] = pool.role
    if mode == "kv" and pool.engine.enable_prefix_caching and pool.role != "decode":
        options["kv_events_config"] = _KV_EVENTS
    container = {
        "name": "main",
        "image": image,
        "command": ["python3", "-m", "dynamo.vllm"],
        "args": arguments(options),
        "envFrom": [{"secretRef": {"name": TOKEN_SECRET}}],
        "resources": {"limits": gpu_limits(release, pool)},
    }
    pod: dict[str, Any] = {"containers": [container]}
    if selector := node_selector(release, pool):
        pod["nodeSelector"] = selector
    component: dict[str, Any] = {
        "name": release.pool_name(pool),
        "type": _TYPES[pool.role],
        "replicas": pool.replicas,
        "podTemplate": {"spec": pod},
    }
    if (nodes := release.nodes_per_replica(pool)) > 1:
        component["multinode"] = {"nodeCount": nodes}
    return component


def router_mode(routing: str) -> str:
    """Return the frontend's mode nearest to a plan's routing: ``kv`` weighs load and cached prefixes."""
    name = routing.split("+")[0]
    return name if name in ("round-robin", "random") else "kv"
