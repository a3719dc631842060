"""Fields of the targets' documents that the exports may use, and what values they take.

Read from the targets' own schemas: Dynamo's operator types (``api/v1beta1``: DynamoGraphDeployment,
DynamoComponentDeploymentSharedSpec), KServe's CRD ``serving.kserve.io_llminferenceservices``
(v1alpha2) with its validating webhook, ``values.schema.json`` of the chart llm-d-modelservice,
``LLMConfig`` and the builders of ``ray.serve.llm`` (Ray 2.60), and ``core/v1`` of Kubernetes for pods.
"""

from collections.abc import Mapping
from typing import Any

ENV = [{"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}]
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": ENV,
    "envFrom": [{"secretRef": {"name": str}}],
    "ports": [{"containerPort": int, "protocol": {"TCP"}}],
    "resources": {"limits": {"nvidia.com/gpu": str, "amd.com/gpu": str}},
}
POD = {"containers": [CONTAINER], "nodeSelector": {"nvidia.com/gpu.product": str}}

DYNAMO = {
    "apiVersion": {"nvidia.com/v1beta1"},
    "kind": {"DynamoGraphDeployment"},
    "metadata": {"name": str},
    "spec": {
        "backendFramework": {"sglang", "vllm", "trtllm"},
        "components": [
            {
                "name": str,
                "type": {"frontend", "worker", "prefill", "decode", "planner", "epp"},
                "replicas": int,
                "podTemplate": {"spec": POD},
                "multinode": {"nodeCount": int},
            }
        ],
    },
}

KSERVE_WORKLOAD = {
    "replicas": int,
    "parallelism": {
        "tensor": int,
        "pipeline": int,
        "data": int,
        "dataLocal": int,
        "dataRPCPort": int,
        "expert": bool,
    },
    "template": POD,
    "worker": POD,
}
KSERVE = {
    "apiVersion": {"serving.kserve.io/v1alpha2"},
    "kind": {"LLMInferenceService"},
    "metadata": {"name": str},
    "spec": {
        "model": {"uri": str, "name": str},
        **KSERVE_WORKLOAD,
        "prefill": KSERVE_WORKLOAD,
        "router": {"route": {}, "gateway": {}, "scheduler": {}},
    },
}

LLM_D_ROLE = {
    "create": bool,
    "replicas": int,
    "nodeSelector": {"nvidia.com/gpu.product": str},
    "parallelism": {"tensor": int, "data": int, "dataLocal": int, "workers": int},
    "containers": [
        {
            **CONTAINER,
            "modelCommand": {"vllmServe", "imageDefault", "custom"},
            "mountModelVolume": bool,
        }
    ],
}
LLM_D = {
    "fullnameOverride": str,
    "multinode": bool,
    "modelArtifacts": {
        "name": str,
        "uri": str,
        "size": str,
        "authSecretName": str,
        "labels": {"llm-d.ai/inference-serving": str, "llm-d.ai/model": str},
    },
    "routing": {
        "servicePort": int,
        "proxy": {"enabled": bool, "targetPort": int, "connector": str, "secure": bool},
    },
    "decode": LLM_D_ROLE,
    "prefill": LLM_D_ROLE,
}

LLM_CONFIG = {
    "model_loading_config": {"model_id": str, "model_source": str, "tokenizer_source": str},
    "accelerator_type": str,
    "deployment_config": {"num_replicas": int},
    "engine_kwargs": dict,
}
RAY_SERVE = {
    "applications": [
        {
            "name": str,
            "route_prefix": str,
            "import_path": {
                "ray.serve.llm:build_openai_app",
                "ray.serve.llm:build_pd_openai_app",
                "ray.serve.llm:build_dp_openai_app",
            },
            "args": {
                "llm_configs": [LLM_CONFIG],
                "prefill_config": LLM_CONFIG,
                "decode_config": LLM_CONFIG,
                "llm_config": LLM_CONFIG,
            },
        }
    ]
}

SHAPES = {"dynamo": DYNAMO, "kserve": KSERVE, "llm-d": LLM_D, "ray-serve": RAY_SERVE}


def problems(value: Any, shape: Any, at: str = "") -> list[str]:
    """Return the fields of a document that a target does not know, or of another type."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return [f"{at}: not a mapping"]
        return [
            problem
            for key, part in value.items()
            for problem in (
                problems(part, shape[key], f"{at}.{key}") if key in shape else [f"{at}.{key}"]
            )
        ]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{at}: not a list"]
        return [p for i, part in enumerate(value) for p in problems(part, shape[0], f"{at}[{i}]")]
    if isinstance(shape, set):
        return [] if value in shape else [f"{at}: {value!r} is none of {sorted(shape)}"]
    exact = type(value) is shape or (shape is dict and isinstance(value, dict))
    return [] if exact else [f"{at}: {value!r} is not {shape.__name__}"]
