"""The command line as its users run it."""

import json
import os
import subprocess
import sys

import pytest
import yaml

KEYS = [
    "requests", "completed", "rejected", "simulated_s", "wall_s", "requests_per_wall_s", "iterations", "ttft_s", "tpot_s",
    "itl_s", "e2e_s", "slo_attainment", "goodput_rps", "output_tokens_per_s", "gpu_hours", "cost_usd", "energy_kwh",
    "carbon_kg", "preemptions", "kv_utilization_peak",
]  # fmt: skip
SPEC = {
    "model": "llama-3.1-8b",
    "cluster": {"nodes": [{"gpu": "h100_sxm", "count": 1}]},
    "workload": {"profile": "chat", "rate_rps": 5, "duration_s": 120},
    "slo": {"ttft_ms": 2000, "tpot_ms": 50, "attainment": 0.95},
}


def gpusched(*arguments, code=0, **options):
    done = subprocess.run(
        [sys.executable, "-m", "gpusched.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


def test_plan_then_simulate(spec, tmp_path):
    done = gpusched(
        "plan", spec, "-o", tmp_path / "plan.yaml", "--report", tmp_path / "report.html", "--json"
    )
    plan = json.loads(done.stdout)
    assert plan["gpusched"] == "plan/1"
    assert "answer" not in done.stdout
    assert "<svg" in (tmp_path / "report.html").read_text()
    result = json.loads(gpusched("simulate", tmp_path / "plan.yaml", "--json").stdout)
    assert set(KEYS) <= set(result)
    assert set(result["ttft_s"]) == {"mean", "p50", "p90", "p95", "p99", "max"}
    for key in ("requests", "ttft_s", "slo_attainment", "cost_usd", "iterations"):
        assert result[key] == plan["predicted"][key]
    doubled = json.loads(
        gpusched("simulate", tmp_path / "plan.yaml", "--rate-scale", 2, "--json").stdout
    )
    assert doubled["simulated_s"] < result["simulated_s"]
    for name in ("prefill-first", "static"):
        assert json.loads(
            gpusched("simulate", tmp_path / "plan.yaml", "--batching", name, "--json").stdout
        )["completed"]


def test_own_model_and_own_timing(spec, tmp_path):
    config = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
              "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text(json.dumps(config))
    (tmp_path / "mine/timing.toml").write_text("host_s = 0.01")
    spec.write_text(
        yaml.safe_dump({**SPEC, "model": "./mine/config.json", "timing": "mine/timing.toml"})
    )
    plan = json.loads(gpusched("plan", spec, "--json").stdout)
    assert plan["predicted"]["tpot_s"]["p50"] > 0.01
    assert plan["provenance"]["inputs"].keys() == {"timing.toml"}


def test_demo_writes_its_files(tmp_path):
    done = gpusched("demo", "-d", tmp_path)
    assert "GPUs at $" in done.stdout
    assert {"spec.yaml", "plan.yaml", "plan.json", "report.html"} <= set(os.listdir(tmp_path))
    assert json.loads((tmp_path / "plan.json").read_text())["predicted"]["slo_attainment"] >= 0.99


FILES = ["azure_2023_conv.parquet", "azure_2023_code.parquet", "mooncake_conversation.parquet", "burstgpt_1_head.csv",
         "raw/AzureLLMInferenceTrace_conv.head.csv", "raw/mooncake_conversation.head.jsonl"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_published_traces(shared, tmp_path, name):
    path = tmp_path / "spec.yaml"
    cluster = {"nodes": [{"gpu": "h200_sxm", "count": 8}]}
    slo = {"ttft_ms": 20000, "tpot_ms": 100, "attainment": 0.9}
    path.write_text(
        yaml.safe_dump(
            {
                **SPEC,
                "cluster": cluster,
                "slo": slo,
                "workload": {"trace": str(shared / "traces" / name)},
            }
        )
    )
    gpusched("plan", path, "-o", tmp_path / "plan.json")
    result = json.loads(gpusched("simulate", tmp_path / "plan.json", "--json").stdout)
    assert result["completed"] == result["requests"] > 0
    described = json.loads(gpusched("trace", "describe", shared / "traces" / name, "--json").stdout)
    assert described["requests"] == result["requests"]


def test_traces_are_made_converted_and_described(tmp_path):
    gpusched(
        "trace",
        "generate",
        "agent",
        tmp_path / "a.parquet",
        "--rate",
        2,
        "--duration",
        300,
        "--seed",
        3,
    )
    gpusched("trace", "convert", tmp_path / "a.parquet", tmp_path / "b.parquet", "--limit", 50)
    described = json.loads(
        gpusched(
            "trace", "describe", tmp_path / "b.parquet", "--json", "--plot", tmp_path / "p.html"
        ).stdout
    )
    assert described["requests"] == 50
    assert "<svg" in (tmp_path / "p.html").read_text()
    fit = json.loads(gpusched("trace", "describe", "chat", "--against", "chat", "--json").stdout)
    assert fit["against"]["chat"]["prompt_tokens"]["ks_distance"] < 0.05


def test_catalog():
    assert {"h100_sxm", "l4"} <= {
        g["name"] for g in json.loads(gpusched("catalog", "gpus", "--json").stdout)
    }
    model = json.loads(gpusched("catalog", "models", "deepseek-v3", "--json").stdout)
    assert model["parameters"] == pytest.approx(671e9, rel=0.006)
    assert "h100_sxm" in gpusched("catalog", "gpus").stdout


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"model": "llama-9"}, 2, ["model", "llama"]),
        ({"workload": {"trace": "missing.csv"}}, 2, ["missing.csv"]),
        ({"slo": {"tpot_ms": 0.5}}, 3, ["infeasible", "TPOT"]),
        ({"model": "deepseek-v3", "cluster": {"nodes": [{"gpu": "l4"}]}}, 3, ["memory"]),
    ],
)  # fmt: skip
def test_errors_are_one_message_and_a_code(spec, change, code, words):
    spec.write_text(yaml.safe_dump({**SPEC, **change}))
    done = gpusched("plan", spec, code=code)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["plan", "nothing.yaml"], "nothing.yaml"),
        (["trace", "describe", "nothing.csv"], "nothing.csv"),
        (["trace", "generate", "chta", "x.csv"], "chat"),
        (["trace", "generate", "chat", "x.txt", "--duration", "5"], "parquet"),
        (["catalog", "gpus", "h101"], "h100"),
        (["plna"], "plna"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, word, tmp_path):
    done = gpusched(*arguments, code=2, cwd=tmp_path)
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_heavy():
    code = "import sys, gpusched.cli.main; print([m for m in ('numpy','numba','scipy','pyarrow','pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for command in ("demo", "plan", "simulate", "trace", "catalog"):
        assert "Example" in gpusched(command, "--help").stdout or command in ("trace", "catalog")
