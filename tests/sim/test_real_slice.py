"""Leaping and stepping on slices of real traces, in every mode."""

import numpy as np
import pytest

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.domain.slo import Slo
from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.sim.reference import Reference
from gpusched.sim.simulate import ClosedLoop, simulate
from gpusched.timing.iteration import timing_model
from gpusched.traces.read import read_trace

SLO = Slo(ttft_s=0.5, tpot_s=0.03)


def pool(name="engines", **changes):
    options = {"model": "llama-3.1-8b", "pp": changes.get("pipeline_stages", 1)}
    timing = timing_model(
        load_model(options["model"]), load_gpu("h100_sxm"), Parallelism(pp=options["pp"]), level=1
    )
    return Pool(**{"name": name, "timing": timing.compile(), "kv_blocks": 6000, **changes})


PD = (
    pool("prefill", role="prefill", replicas=2, max_num_batched_tokens=8192),
    pool("decode", role="decode", replicas=2),
)
FLEETS = {
    "chunked": Fleet((pool(),)),
    "chunked, little memory": Fleet((pool(kv_blocks=1600),)),
    "prefill-first": Fleet((pool(batching="prefill-first", max_num_batched_tokens=16384),)),
    "static": Fleet((pool(batching="static", max_num_seqs=16, max_num_batched_tokens=16384),)),
    "pipeline": Fleet((pool(pipeline_stages=2),)),
    "start-up": Fleet((pool(replicas=2, startup_s=20.0),)),
    "prefill and decode": Fleet(PD, KvLink(5e-5, 5e-6)),
    **{f"routing {name}": Fleet((pool(replicas=3),), routing=name) for name in (
        "round-robin", "random", "least-requests", "least-tokens", "power-of-two", "prefix-affinity")},
}  # fmt: skip


def assert_same_figures(fleet, trace, loop=None):
    result = simulate(fleet, trace, closed_loop=loop, seed=1)
    rows = Reference(fleet, trace, loop, 1).run().requests
    arrival, first, last = (
        np.array([getattr(row, name) for row in rows])
        for name in ("arrival_s", "first_token_s", "last_token_s")
    )
    ttft, tpot = first - arrival, (last - first) / np.maximum(trace.output_tokens - 1, 1)
    served = ~result.rejected
    assert result.ttft_s[served].mean() == pytest.approx(ttft[served].mean(), rel=1e-9)
    assert result.tpot_s[served].mean() == pytest.approx(tpot[served].mean(), rel=1e-9)
    ours = SLO.met(result.ttft_s, result.tpot_s, result.e2e_s)
    theirs = SLO.met(np.where(served, ttft, np.nan), tpot, last - arrival)
    assert ours.mean() == theirs.mean()
    assert served.sum() > 0


@pytest.mark.parametrize("mode", FLEETS)
def test_same_figures_on_a_real_slice(shared, mode):
    trace = read_trace(shared / "traces/azure_2023_conv.parquet", limit=250)
    assert_same_figures(FLEETS[mode], trace)


@pytest.mark.parametrize(
    "mode", ["chunked", "prefill-first", "prefill and decode", "routing prefix-affinity"]
)
def test_same_figures_with_shared_prefixes(shared, mode):
    trace = read_trace(shared / "traces/mooncake_conversation.parquet", limit=60)
    fleet = FLEETS[mode]
    assert_same_figures(fleet, trace)
    cached = simulate(fleet, trace, seed=1).cached_tokens
    assert cached.sum() > 0


def test_same_figures_with_a_closed_loop(shared):
    trace = read_trace(shared / "traces/azure_2023_conv.parquet", limit=200)
    assert_same_figures(FLEETS["chunked"], trace, ClosedLoop(16, 0.5))


def test_same_figures_with_sessions(shared):
    trace = read_trace(shared / "traces/agentic_swebench_calls.parquet", rate_rps=1.0)
    rows = np.flatnonzero((trace.session_id < 3) & (trace.round < 12))
    assert_same_figures(Fleet((pool(kv_blocks=20000),)), trace.take(rows))
