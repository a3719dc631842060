"""The simulator beside a real engine and beside another simulator's published run."""

import csv
import gzip

import numpy as np
import pytest

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.engine import EngineSettings
from gpusched.domain.parallel import Parallelism
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.iteration import timing_model
from gpusched.timing.memory import memory
from gpusched.traces.read import read_trace
from gpusched.traces.trace import Trace

SEQUENCES = 128


def test_steps_and_gaps_are_near_those_of_another_simulator(shared):
    """BLIS, H100, Llama-3.1-8B, 10,000 Azure requests at 6/s: 212,823 steps, mean ITL 8.1 ms."""
    rng = np.random.default_rng(0)
    real = read_trace(shared / "traces/azure_2023_conv.parquet")
    rows = rng.integers(0, len(real), 10_000)
    arrivals = np.cumsum(rng.exponential(1 / 6, 10_000))
    trace = Trace(arrivals, real.prompt_tokens[rows], real.output_tokens[rows])
    timing = timing_model(load_model("llama-3.1-8b"), load_gpu("h100_sxm"), Parallelism(), level=1)
    result = simulate(Fleet((Pool("engine", timing.compile(), kv_blocks=28_000),)), trace)
    assert sum(use.iterations for use in result.pools) == pytest.approx(212_823, rel=0.1)
    assert result.gaps.spread()["mean"] == pytest.approx(8.1e-3, rel=0.1)


def test_latencies_are_near_those_of_a_measured_engine(shared):
    """vLLM on one RTX PRO 6000, Llama-3.1-8B in bf16, 300 requests at 10/s; nothing is fitted."""
    path = shared / "data/perf/vllm_measured_requests.csv.gz"
    if not path.exists():
        pytest.skip("no measured requests")
    with gzip.open(path, "rt", newline="") as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if r["gpu"] == "RTXPRO6000" and r["model"] == "Llama-3.1-8B"
        ]
    rows.sort(key=lambda row: float(row["arrival_s"]))
    column = {
        k: np.array([float(r[k]) for r in rows]) for k in rows[0] if k.endswith(("_s", "_tokens"))
    }
    trace = Trace(
        column["arrival_s"],
        column["input_tokens"].astype(np.int32),
        column["output_tokens"].astype(np.int32),
    )
    model, gpu = load_model("llama-3.1-8b"), load_gpu("rtx_pro_6000")
    use = memory(
        model, gpu, Parallelism(), EngineSettings(max_num_seqs=SEQUENCES), weights_dtype="bf16",
        kv_cache_dtype="bf16", max_num_batched_tokens=2048,
    )  # fmt: skip
    timing = timing_model(model, gpu, Parallelism(), level=1).compile()
    pool = Pool("engine", timing, kv_blocks=use.kv_blocks(16, SEQUENCES), max_num_seqs=SEQUENCES)
    result = simulate(Fleet((pool,)), trace)
    assert result.tpot_s.mean() == pytest.approx(column["tpot_s"].mean(), rel=0.12)
    assert result.e2e_s.mean() == pytest.approx(column["e2e_s"].mean(), rel=0.12)
    assert result.ttft_s.mean() == pytest.approx(column["ttft_s"].mean(), rel=0.25)
