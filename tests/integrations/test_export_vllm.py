"""Exported command lines, read by vLLM's own parser."""

import json
import subprocess
from typing import Any

import pytest
from exported_plans import disaggregated, expert_parallel, mixed, plan, pool
from test_export import serve_commands

from gpusched.engines.vllm_server import ENVIRONMENT, vllm_python
from gpusched.errors import InputError
from gpusched.integrations.export import export
from parts import missing

READ = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
found = []
for words in json.load(sys.stdin):
    options = parser.parse_args(words)
    found.append({k: str(v) if k == "kv_transfer_config" else v for k, v in vars(options).items()})
print("OPTIONS" + json.dumps(found, default=str))
"""


def vllm_reads(commands: list[list[str]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(vllm_python()), "-c", READ],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=240,
        env=dict(ENVIRONMENT, PATH="/usr/bin:/bin"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.rpartition("OPTIONS")[2])
    return found


@pytest.mark.engine
def test_vllm_reads_what_the_plan_says() -> None:
    try:
        vllm_python()
    except InputError as error:
        missing(error)
    plans = [
        mixed(),
        disaggregated(kv_cache_dtype="fp8"),
        expert_parallel(16),
        plan(pool(tensor_parallel_size=8, pipeline_parallel_size=2)),
        plan(pool(engine={"batching": "mc-sf+margin=0.1", "enable_prefix_caching": False})),
        plan(pool(engine={"batching": "priority"})),
        plan(pool(engine={"batching": "sarathi"})),
        mixed(model="llama-3.1-70b", weights_dtype="fp8"),
    ]
    commands = [
        words for p in plans for words in serve_commands(export(p, "vllm").documents[0].text)
    ]
    found = vllm_reads(commands)
    assert len(found) == len(commands) == 3 + 3 + 2 + 2 + 1 + 1 + 1 + 3
    tensor = [options["tensor_parallel_size"] for options in found[:6]]
    assert tensor == [2, 2, 2, 2, 2, 4]
    assert found[3]["kv_cache_dtype"] == "fp8"
    assert "NixlConnector" in found[3]["kv_transfer_config"]
    assert found[5]["max_num_seqs"] == 128
    assert (found[7]["data_parallel_start_rank"], found[7]["headless"]) == (8, True)
    assert (found[9]["nnodes"], found[9]["node_rank"]) == (2, 1)
    assert found[10]["scheduler_cls"] == "gpusched.integrations.vllm.Scheduler"
    assert found[10]["additional_config"] == {"gpusched": {"batching": "mc-sf+margin=0.1"}}
    assert found[10]["enable_prefix_caching"] is False
    assert found[11]["scheduling_policy"] == "priority"
    assert (found[12]["max_num_batched_tokens"], found[12]["watermark"]) == (512, 0.01)
    assert found[13]["quantization"] == "fp8"
    assert all(options["gpu_memory_utilization"] == 0.9 for options in found)
