"""Small plans to export."""

from typing import Any

from gpusched.domain.plan import Plan, plan_from

CLUSTER = {"nodes": [{"name": "h100", "gpu": "h100_sxm", "gpus": 8, "count": 2}]}
WORKLOAD = {"profile": "chat", "rate_rps": 4, "duration_s": 60}


def pool(name: str = "mixed", **values: Any) -> dict[str, Any]:
    return {"name": name, "nodes": "h100", "gpu": "h100_sxm", "replicas": 1, **values}


def plan(*pools: dict[str, Any], **values: Any) -> Plan:
    document = {
        "gpusched": "plan/1",
        "model": "llama-3.1-8b",
        "weights_dtype": "bf16",
        "cluster": CLUSTER,
        "pools": list(pools),
        "workload": WORKLOAD,
        "slo": {"ttft_ms": 2000},
        **values,
    }
    return plan_from(document)


def mixed(**values: Any) -> Plan:
    return plan(pool(replicas=3, tensor_parallel_size=2), **values)


def disaggregated(**values: Any) -> Plan:
    return plan(
        pool("prefill", role="prefill", replicas=2, tensor_parallel_size=2),
        pool("decode", role="decode", tensor_parallel_size=4, engine={"max_num_seqs": 128}),
        **values,
    )


def expert_parallel(ranks: int = 8) -> Plan:
    return plan(
        pool("experts", data_parallel_size=ranks, enable_expert_parallel=True),
        model="deepseek-v3",
        weights_dtype="fp8",
    )


def cascade() -> Plan:
    stages = [
        {
            "model": "qwen2.5-7b",
            "weights_dtype": "bf16",
            "pools": [pool(replicas=2)],
            "threshold": 60,
        },
        {
            "model": "llama-3.1-70b",
            "weights_dtype": "fp8",
            "pools": [pool(tensor_parallel_size=4)],
            "reach": 0.3,
        },
    ]
    return plan(
        pools=[],
        cascade={
            "stages": stages,
            "scores": "scores.csv",
            "models": ["qwen2.5-7b", "llama-3.1-70b"],
            "quality": 80,
        },
    )
