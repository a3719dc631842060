"""Exports against the targets' fields, and back: a command line says what the plan says."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported_plans import (
    cascade,
    disaggregated,
    expert_parallel,
    mixed,
    plan,
    pool,
)
from hypothesis import given
from hypothesis import strategies as st
from peer_fields import SHAPES, problems
from typer.testing import CliRunner

from gpusched.domain.engine import EngineSettings
from gpusched.domain.plan import Plan, write_plan
from gpusched.errors import InputError
from gpusched.integrations.export import TARGETS, export
from gpusched.integrations.export.flags import arguments
from gpusched.integrations.export.releases import dns_label, find_checkpoint, releases
from gpusched.integrations.export.vllm import place

PLANS = {
    "mixed": mixed(),
    "disaggregated": disaggregated(),
    "experts": expert_parallel(),
    "cascade": cascade(),
}


def read_options(words: list[str]) -> dict[str, Any]:
    """Read a command line as vLLM does: ``--name value``, ``--switch``, ``--no-switch``."""
    options: dict[str, Any] = {}
    at = 0
    while at < len(words):
        name = words[at].removeprefix("--").replace("-", "_")
        at += 1
        if at == len(words) or words[at].startswith("--"):
            options[name.removeprefix("no_")] = not name.startswith("no_")
        else:
            options[name] = yaml.safe_load(words[at])
            at += 1
    return options


def engine_of(options: dict[str, Any]) -> EngineSettings:
    """Read a plan's engine settings from options."""
    values = {name: options[name] for name in EngineSettings.model_fields if name in options}
    if "additional_config" in options:
        values["batching"] = options["additional_config"]["gpusched"]["batching"]
    if "scheduling_policy" in options:
        values["batching"] = options["scheduling_policy"]
    return EngineSettings(**values)


def serve_commands(script: str) -> list[list[str]]:
    """Return the words after the model of each ``vllm serve`` in a script."""
    lines = [shlex.split(line) for line in script.splitlines() if line.startswith("  start ")]
    return [words[words.index("serve") + 1 :] for words in lines]


@pytest.mark.parametrize("target", SHAPES)
@pytest.mark.parametrize("name", PLANS)
def test_documents_have_only_fields_of_the_target(target: str, name: str) -> None:
    for document in export(PLANS[name], target).documents:
        for part in yaml.safe_load_all(document.text):
            assert problems(part, SHAPES[target]) == []


def test_the_check_of_fields_sees_wrong_ones() -> None:
    (document,) = export(mixed(), "kserve").documents
    part = yaml.safe_load(document.text)
    part["spec"]["replica"] = 3
    part["spec"]["parallelism"]["tensor"] = "2"
    assert problems(part, SHAPES["kserve"]) == [
        ".spec.parallelism.tensor: '2' is not int",
        ".spec.replica",
    ]


@given(
    seqs=st.integers(1, 4096),
    budget=st.integers(4096, 100_000),
    share=st.floats(0.05, 1),
    block=st.sampled_from([8, 16, 32, 64, 128]),
    caching=st.booleans(),
    batching=st.sampled_from(["vllm", "priority", "mc-sf+margin=0.1", "nested-wait", "sjf"]),
    tensor=st.sampled_from([1, 2, 4]),
)
def test_a_command_line_reads_back_as_the_same_engine(
    seqs: int, budget: int, share: float, block: int, caching: bool, batching: str, tensor: int
) -> None:
    settings = EngineSettings(
        batching=batching,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        gpu_memory_utilization=share,
        block_size=block,
        enable_prefix_caching=caching,
    )
    given_plan = plan(pool(engine=settings.model_dump(), tensor_parallel_size=tensor))
    (document,) = export(given_plan, "vllm").documents
    ((model, *words),) = serve_commands(document.text)
    options = read_options(words)
    assert model == "meta-llama/Llama-3.1-8B-Instruct"
    assert engine_of(options) == settings
    assert options.get("tensor_parallel_size", 1) == tensor
    assert options["served_model_name"] == "llama-3.1-8b"


def test_every_target_gives_engines_the_same_options() -> None:
    expected = {"max_num_seqs": 128, "kv_transfer_config": {"kv_connector": "NixlConnector"}}
    found = []
    texts = {t: [d.text for d in export(disaggregated(), t).documents] for t in TARGETS}
    found.append(read_options(serve_commands(texts["vllm"][0])[2][1:]))
    components = yaml.safe_load(texts["dynamo"][0])["spec"]["components"]
    container = components[2]["podTemplate"]["spec"]["containers"][0]
    found.append(read_options(container["args"]))
    values = yaml.safe_load(texts["llm-d"][0])["decode"]
    found.append(read_options(values["containers"][0]["args"]))
    spec = yaml.safe_load(texts["kserve"][0])["spec"]
    found.append(read_options(shlex.split(spec["template"]["containers"][0]["env"][0]["value"])))
    ray = yaml.safe_load(texts["ray-serve"][0])["applications"][0]["args"]
    found.append(ray["decode_config"]["engine_kwargs"])
    for options in found:
        assert options["max_num_seqs"] == expected["max_num_seqs"]
        assert options["kv_transfer_config"]["kv_connector"] == "NixlConnector"
        assert options["gpu_memory_utilization"] == 0.9
    assert components[2]["type"] == "decode"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert values["parallelism"]["tensor"] == 4
    assert spec["parallelism"]["tensor"] == 4
    assert spec["prefill"]["replicas"] == 2
    assert ray["prefill_config"]["deployment_config"] == {"num_replicas": 2}


def test_replicas_of_a_script_share_no_gpu_and_no_port() -> None:
    engines = place(releases(disaggregated(), {}))
    used = [(node, gpu) for engine in engines for node in engine.nodes for gpu in engine.gpus]
    assert len(used) == len(set(used)) == 8
    ports = [(engine.nodes[0], engine.port) for engine in engines]
    assert len(set(ports)) == len(ports) == 3


def test_replicas_that_fit_only_in_sum_are_refused() -> None:
    with pytest.raises(InputError, match="not node by node"):
        export(plan(pool(replicas=3, tensor_parallel_size=5)), "vllm")


def test_a_replica_over_two_nodes_names_its_head() -> None:
    (document,) = export(expert_parallel(16), "vllm").documents
    head, other = serve_commands(document.text)
    assert read_options(head[1:])["data_parallel_size_local"] == 8
    rest = read_options(other[1:])
    assert (rest["data_parallel_start_rank"], rest["headless"]) == (8, True)
    assert rest["data_parallel_address"] == "h100-0"
    (service,) = export(expert_parallel(16), "kserve").documents
    spec = yaml.safe_load(service.text)["spec"]
    assert spec["parallelism"] == {"tensor": 1, "data": 16, "dataLocal": 8, "expert": True}
    assert spec["worker"] == spec["template"]
    assert "data-parallel" not in spec["template"]["containers"][0]["env"][0]["value"]
    with pytest.raises(InputError, match="spans 2 nodes"):
        export(expert_parallel(16), "llm-d")
    wide = plan(pool(tensor_parallel_size=8, pipeline_parallel_size=2))
    pair = serve_commands(export(wide, "vllm").documents[0].text)
    assert [read_options(words[1:])["node_rank"] for words in pair] == [0, 1]
    with pytest.raises(InputError, match="spreads only"):
        export(wide, "kserve")


def test_a_script_runs_in_a_shell(tmp_path: Path) -> None:
    (document,) = export(mixed(), "vllm").documents
    script = tmp_path / "engines.sh"
    script.write_text(document.text.replace("vllm serve", "echo serve"))
    done = subprocess.run(["sh", script, "h100-0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logs = sorted(path.name for path in tmp_path.glob("*.log"))
    assert logs == ["mixed-0.log", "mixed-1.log", "mixed-2.log"]
    assert "--tensor-parallel-size 2" in (tmp_path / "mixed-1.log").read_text()
    wrong = subprocess.run(["sh", script, "x"], cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "one of: h100-0" in wrong.stderr


def test_endpoints_of_the_plan_give_the_ports() -> None:
    given_plan = plan(pool(endpoints=["http://h100-0:9000"]))
    assert place(releases(given_plan, {}))[0].port == 9000


@pytest.mark.parametrize(
    ("model", "dtype", "expected"),
    [
        ("llama-3.1-8b", "bf16", ("meta-llama/Llama-3.1-8B-Instruct", True)),
        ("llama-3.1-8b", "fp8", ("nvidia/Llama-3.1-8B-Instruct-FP8", True)),
        ("llama-3.1-70b", "fp8", ("meta-llama/Llama-3.1-70B-Instruct", False)),
        ("qwen3-32b", "fp8", ("Qwen/Qwen3-32B-FP8", True)),
        ("qwen3-32b", "nvfp4", ("nvidia/Qwen3-32B-NVFP4", True)),
        ("Qwen/Qwen3-32B", "fp8", ("Qwen/Qwen3-32B", False)),
        ("deepseek-v3", "fp8", ("deepseek-ai/DeepSeek-V3", True)),
    ],
)
def test_checkpoints(model: str, dtype: str, expected: tuple[str, bool]) -> None:
    assert find_checkpoint(model, dtype) == expected


def test_weights_are_quantized_on_loading_only_where_vllm_can() -> None:
    made = export(mixed(model="llama-3.1-70b", weights_dtype="fp8"), "vllm")
    assert "--quantization fp8" in made.documents[0].text
    made = export(mixed(model="llama-3.1-70b", weights_dtype="int4"), "vllm")
    assert "--quantization" not in made.documents[0].text
    assert "--checkpoint" in made.notes[0]
    made = export(mixed(), "vllm", checkpoints={"llama-3.1-8b": "me/mine"})
    assert "vllm serve me/mine --served-model-name llama-3.1-8b" in made.documents[0].text


def test_batching_that_vllm_does_not_run_is_refused() -> None:
    for batching in ("static", "greedy-clearing", "mine.py:order"):
        with pytest.raises(InputError, match="does not run batching"):
            export(plan(pool(engine={"batching": batching})), "vllm")
    made = export(plan(pool(engine={"batching": "sarathi+chunk_tokens=1024"})), "vllm")
    assert "--max-num-batched-tokens 1024" in made.documents[0].text


def test_plans_that_no_target_runs() -> None:
    apart = plan(pool(attention_gpus=3, expert_gpus=5), model="deepseek-v3", weights_dtype="fp8")
    with pytest.raises(InputError, match="3 attention"):
        export(apart, "vllm")
    with pytest.raises(InputError, match="unknown target 'dynamos'; did you mean dynamo"):
        export(mixed(), "dynamos")
    with pytest.raises(InputError, match="starts engines without a container"):
        export(mixed(), "vllm", image="x")
    with pytest.raises(InputError, match="prefill or decode pools only"):
        export(plan(pool(role="prefill")), "vllm")
    several = plan(pool("a"), pool("b", tensor_parallel_size=2))
    with pytest.raises(InputError, match="one kind of replica"):
        export(several, "ray-serve")
    assert len(export(several, "kserve").documents) == 2
    folder = mixed()
    with pytest.raises(InputError, match="pods cannot read"):
        export(folder, "kserve", checkpoints={"llama-3.1-8b": "/models/x"})


def test_nodes_of_several_gpu_types_are_told_apart() -> None:
    nodes = [
        {"name": "h100", "gpu": "h100_sxm", "gpus": 8},
        {"name": "l4", "gpu": "l4", "gpus": 8},
    ]
    (document,) = export(mixed(cluster={"nodes": nodes}), "dynamo").documents
    pod = yaml.safe_load(document.text)["spec"]["components"][1]["podTemplate"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    amd = {"nodes": [{"name": "h100", "gpu": "mi300x", "gpus": 8}]}
    (document,) = export(plan(pool(gpu="mi300x"), cluster=amd), "kserve").documents
    assert "amd.com/gpu: '1'" in document.text


@given(st.text(max_size=80))
def test_names_are_dns_labels(text: str) -> None:
    label = dns_label(text)
    assert 0 < len(label) <= 63
    assert label[0].isalpha()
    assert label[-1].isalnum()
    assert all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in label)


def test_options_become_words() -> None:
    options = {"block_size": 16, "enable_prefix_caching": False, "x": {"a": 1}}
    assert arguments(options) == ["--block-size", "16", "--no-enable-prefix-caching", "--x", '{"a": 1}']  # fmt: skip


def run(plan_file: Path, *words: str) -> Any:
    from gpusched.cli.main import app

    return CliRunner().invoke(app, ["export", str(plan_file), *words])


def test_the_command_writes_files(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    write_plan(cascade(), file)
    done = run(file, "--to", "vllm")
    assert done.exit_code == 0, done.output
    assert "Qwen/Qwen2.5-7B-Instruct" in done.stdout
    assert run(file, "--to", "llm-d", "-o", f"{tmp_path}/values/").exit_code == 0
    assert {p.name for p in (tmp_path / "values").iterdir()} == {
        "qwen2-5-7b.yaml",
        "llama-3-1-70b.yaml",
    }
    refused = run(file, "--to", "llm-d", "-o", str(tmp_path / "v.yaml"))
    assert isinstance(refused.exception, InputError)
    assert "name a folder" in str(refused.exception)
    named = run(file, "--to", "kserve", "--checkpoint", "llama-3.1-70b=a/b")
    assert "uri: hf://a/b" in named.stdout
    assert len(list(yaml.safe_load_all(named.stdout))) == 2


def test_plans_of_layers_are_refused() -> None:
    values = mixed().model_dump()
    layers = {
        "nodes": [{"node": "h100-0", "first": 0, "layers": 32}],
        "flows": [{"ends": ["front", "h100-0"], "tokens_per_s": 1.0}],
    }
    with pytest.raises(InputError, match="a plan of layers"):
        export(Plan(**{**values, "pools": (), "layers": layers}), "vllm")
    assert json.dumps(values["workload"])
