"""Files that a plan names for its gateway are seen from the plan's folder."""

from pathlib import Path

from gpusched.domain.plan import plan_from


def test_files_of_a_gateway_are_relative_to_the_plan():
    folder = Path("/plans/here")
    pool = {
        "name": "p",
        "nodes": "n",
        "gpu": "l40s",
        "replicas": 1,
        "endpoints": ["http://a:1", {"url": "http://b:1", "api_key_file": "keys/b"}],
    }
    values = {
        "gpusched": "plan/1",
        "model": "llama-3.1-8b",
        "weights_dtype": "bf16",
        "cluster": {"nodes": [{"name": "n", "count": 2, "gpu": "l40s", "gpus": 1}]},
        "workload": {"profile": "chat", "rate_rps": 1.0},
        "slo": {"ttft_ms": 1000},
        "gateway": {
            "tokenizer": "t/tokenizer.json",
            "request_log": "../log.jsonl",
            "tls": {"certificate": "c.pem", "key": "/etc/k.pem"},
        },
    }
    plan = plan_from({**values, "pools": [pool]}, folder=folder)
    assert plan.gateway.tokenizer == "/plans/here/t/tokenizer.json"
    assert plan.gateway.request_log == "/plans/log.jsonl"
    assert plan.gateway.tls.certificate == "/plans/here/c.pem"
    assert plan.gateway.tls.key == "/etc/k.pem"
    assert [e.api_key_file for e in plan.pools[0].endpoints] == [None, "/plans/here/keys/b"]
    stage = {"model": "llama-3.1-8b", "weights_dtype": "bf16", "pools": [pool]}
    cascade = {"stages": [stage], "scores": "s.csv", "models": ["a"], "quality": 1.0}
    plan = plan_from({**values, "cascade": cascade}, folder=folder)
    assert plan.cascade.scores == "/plans/here/s.csv"
    assert plan.all_pools[0].endpoints[1].api_key_file == "/plans/here/keys/b"
    layers = {
        "nodes": [
            {
                "node": "n-0",
                "first": 0,
                "layers": 32,
                "endpoint": {"url": "http://c:1", "api_key_file": "k"},
            }
        ],
        "flows": [{"ends": ["front", "n-0"], "tokens_per_s": 1.0}],
    }
    plan = plan_from({**values, "layers": layers}, folder=folder)
    assert plan.layers.nodes[0].endpoint.api_key_file == "/plans/here/k"
