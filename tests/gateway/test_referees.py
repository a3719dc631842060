"""Load generators of others, pointed at a gateway unchanged: their counts are the gateway's counts."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from observed import make_plan

from gpusched.domain.plan import Plan
from gpusched.engines.simulated import affine_timing
from gpusched.engines.simulated.iterations import IterationEngine
from gpusched.engines.simulated.server import SimulatedEngine
from gpusched.engines.tiny_model import tiny_model
from gpusched.engines.vllm_server import vllm_python
from gpusched.errors import InputError
from gpusched.gateway.rooms import LiveRooms
from gpusched.gateway.server import Gateway
from parts import missing

pytestmark = pytest.mark.engine
REQUESTS = 60
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def judge(command, tmp_path, environment):
    """Run a load generator against a gateway of two simulated engines; return the request log."""
    log = tmp_path / "requests.jsonl"
    tokenizer = tiny_model().folder / "tokenizer.json"

    async def go():
        timing = affine_timing(0.01, 1e-5)
        async with (
            SimulatedEngine(IterationEngine(timing), tokenizer=tokenizer) as a,
            SimulatedEngine(IterationEngine(timing), tokenizer=tokenizer) as b,
        ):
            settings = {"log_level": "off", "port": 0, "request_log": str(log)}
            values = make_plan(settings, {"ttft_ms": 1000}).model_dump()
            values["pools"][0]["endpoints"] = [a.url, b.url]
            running = Gateway(Plan.model_validate(values), LiveRooms)
            await running.start()
            await asyncio.sleep(0.5)
            try:
                whole = [part.replace("URL", running.address) for part in command]
                return await asyncio.to_thread(
                    subprocess.run, whole, capture_output=True, text=True, timeout=300,
                    cwd=tmp_path, env={**os.environ, **OFFLINE, **environment},
                )  # fmt: skip
            finally:
                await running.close()

    done = asyncio.run(go())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row for row in rows if row["stream"] and row["outcome"] == "ok"]


def test_vllm_bench_serve(tmp_path):
    try:
        python = vllm_python()
    except InputError as error:
        missing(error)
    # A CPU build has no metadata of the name that the command asks for.
    metadata = tmp_path / "meta" / "vllm-0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0\n")
    command = [
        str(python), "-m", "vllm.entrypoints.cli.main", "bench", "serve", "--backend", "openai",
        "--base-url", "URL", "--model", "tiny", "--tokenizer", str(tiny_model().folder),
        "--dataset-name", "random", "--random-input-len", "64", "--random-output-len", "16",
        "--num-prompts", str(REQUESTS), "--request-rate", "20", "--ignore-eos",
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--goodput", "ttft:1000",
        "--save-result", "--result-filename", str(tmp_path / "bench.json"),
    ]  # fmt: skip
    rows = judge(command, tmp_path, {"PYTHONPATH": str(metadata.parents[1])})
    said = json.loads((tmp_path / "bench.json").read_text())
    rows = rows[-REQUESTS:]
    assert said["completed"] == REQUESTS == len(rows)
    assert said["failed"] == 0
    assert said["total_output_tokens"] == sum(row["output_tokens"] for row in rows) == 16 * REQUESTS
    assert said["total_input_tokens"] == sum(row["prompt_tokens"] for row in rows)
    # The same gaps, seen from both sides.
    tpot_ms = 1e3 * np.median([row["tpot_s"] for row in rows])
    assert tpot_ms == pytest.approx(said["median_tpot_ms"], rel=0.2)


def test_guidellm(tmp_path):
    named = os.environ.get("GPUSCHED_GUIDELLM") or shutil.which("guidellm")
    if named is None or not Path(named).exists():
        pytest.skip("no guidellm: pip install guidellm==0.8.1, or set GPUSCHED_GUIDELLM")
    command = [
        named, "run", "--backend", "kind=openai_http,target=URL,model=tiny",
        "--profile", "kind=poisson,rate=10", "--constraint", "kind=max_duration,seconds=5",
        "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
        "--tokenizer", f"kind=hf_auto,model={tiny_model().folder}",
    ]  # fmt: skip
    rows = judge(command, tmp_path, {})
    totals = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"][0]["metrics"][
        "request_totals"
    ]
    assert totals["errored"] == 0
    assert 20 < totals["successful"] <= len(rows) <= totals["successful"] + totals["incomplete"] + 1
    assert {row["output_tokens"] for row in rows} == {16}
