from pathlib import Path

import numpy as np
import pytest
import yaml

from gpusched.domain.plan import plan_from
from gpusched.errors import InputError
from gpusched.sim.deploy import engine_timing, fleet_for, pool_timing
from gpusched.sim.metrics import metrics
from gpusched.sim.simulate import ClosedLoop, simulate
from gpusched.timing.measured import (
    MeasuredEngine,
    MeasuredModel,
    RequestOverhead,
    measured_from,
    measured_toml,
    read_measured,
)
from gpusched.timing.serving import decode_step_s
from gpusched.traces.trace import Trace

VALUES = {
    "engine": "vllm",
    "model": "m",
    "kv_tokens": 1600,
    "block_size": 32,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 512,
    "iteration": {
        "decode_batch": [1, 2, 8],
        "decode_s": [0.010, 0.012, 0.011],
        "tokens": [10, 110],
        "tokens_s": [0.012, 0.062],
        "sequence_s": 1e-4,
        "context_s": 1e-6,
        "pair_s": 1e-8,
    },
    "request": {"entry_s": 0.004, "entry_token_s": 1e-5, "exit_s": 0.001},
    "ranges": {"batch": [1, 8], "prompt_tokens": [8, 400], "context_tokens": [16, 500]},
    "error": {"relative": 0.04, "rows": 200, "condition": 9.0},
    "half_width": {"context_s": 1e-7, "decode_s": [1e-4, 1e-4, 2e-4]},
    "covariance": {"names": ["a", "b"], "matrix": [[1.0, 0.5], [0.5, 2.0]]},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "timing.toml"
    path.write_text(measured_toml(measured_from(VALUES, "x")))
    return path


def plan(file: Path, **pool: object):
    return plan_from(
        {
            "gpusched": "plan/1",
            "model": "llama-3.1-8b",
            "weights_dtype": "bf16",
            "cluster": {"nodes": [{"name": "n", "count": 1, "gpu": "l40s", "gpus": 4}]},
            "pools": [{"name": "p", "nodes": "n", "gpu": "l40s", "replicas": 1, **pool}],
            "workload": {"profile": "chat", "rate_rps": 1},
            "slo": {"ttft_ms": 2000},
            "timing": str(file),
        }
    )


def test_file_reads_back_what_was_written(file: Path) -> None:
    assert read_measured(file) == MeasuredEngine(**VALUES)


def test_iteration_is_what_the_file_says(file: Path) -> None:
    timing = engine_timing(p := plan(file), p.pools[0])
    assert isinstance(timing, MeasuredModel)
    assert timing.iteration_s((100, 200)) == pytest.approx(0.012 + 300e-6)
    mixed = 0.012 + 0.05 * 90 / 100 + 3e-4 + 301e-6 + 1e-8 * (98 * 99 / 2)
    assert timing.iteration_s((100, 201), ((98, 0),)) == pytest.approx(mixed)
    assert timing.prefill_s(210) == pytest.approx(0.112 + 1e-4 + 1e-8 * 210 * 211 / 2)
    assert timing.decode_s(5, 0) == pytest.approx(0.0115)
    assert timing.decode_s(16, 0) == pytest.approx(0.011), "a falling end is not continued"
    step = decode_step_s(timing, np.array([1.5]), np.array([10.0]))
    assert step[0] == pytest.approx(0.011 + 1.5e-5)


def test_simulated_engine_has_the_measured_limits(file: Path) -> None:
    (pool,) = fleet_for(plan(file)).pools
    assert (pool.kv_blocks, pool.block_tokens) == (50, 32)
    assert (pool.max_num_seqs, pool.max_num_batched_tokens) == (8, 512)
    own = {"engine": {"max_num_seqs": 4, "max_num_batched_tokens": 300}}
    (pool,) = fleet_for(plan(file, **own)).pools
    assert (pool.max_num_seqs, pool.max_num_batched_tokens) == (4, 300)


def trace(arrival_s: list[float], prompt: list[int], output: list[int], **more: object) -> Trace:
    return Trace(
        np.array(arrival_s), np.array(prompt, np.int32), np.array(output, np.int32), **more
    )


def test_requests_spend_time_outside_the_engine(file: Path) -> None:
    result = simulate(fleet_for(plan(file)), trace([0.0, 10.0], [10, 110], [1, 3]))
    inside = [0.012 + 1e-4 + 55e-8, 0.062 + 1e-4 + 1e-8 * 110 * 111 / 2]
    outside = [0.005 + 1e-4, 0.005 + 1.1e-3]
    np.testing.assert_allclose(result.arrival_s, [0.0, 10.0], atol=1e-12)
    np.testing.assert_allclose(result.ttft_s, np.add(inside, outside), rtol=1e-9)
    assert result.tpot_s[1] == pytest.approx(0.010 + (111 + 112) / 2 * 1e-6)


def test_longer_way_in_lets_a_later_request_overtake(file: Path) -> None:
    values = {**VALUES, "request": {"entry_s": 0.0, "entry_token_s": 1e-3}, "max_num_seqs": 1}
    file.write_text(measured_toml(measured_from(values, "x")))
    result = simulate(fleet_for(plan(file)), trace([0.0, 0.01], [300, 10], [2, 2]))
    assert result.first_token_s[1] < result.first_token_s[0]
    assert list(result.prompt_tokens) == [300, 10]
    np.testing.assert_allclose(result.arrival_s, [0.0, 0.01])


def test_overhead_is_a_shift_of_arrivals(file: Path) -> None:
    fleet = fleet_for(plan(file))
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(0.2, 60))
    prompt, output = rng.integers(5, 300, 60), rng.integers(1, 40, 60)
    seen = simulate(fleet, trace(arrival, prompt, output))
    overhead = fleet.overhead
    entry = overhead.entry_s + overhead.entry_token_s * prompt
    order = np.argsort(arrival + entry, kind="stable")
    from dataclasses import replace

    bare = replace(fleet, overhead=RequestOverhead())
    inside = simulate(bare, trace((arrival + entry)[order], prompt[order], output[order]))
    np.testing.assert_allclose(seen.finish_s[order], inside.finish_s + overhead.exit_s)
    np.testing.assert_allclose(seen.first_token_s[order], inside.first_token_s + overhead.exit_s)


def test_users_of_a_closed_loop_wait_for_both_ways(file: Path) -> None:
    values = {**VALUES, "request": {"entry_s": 0.1, "exit_s": 0.05}}
    file.write_text(measured_toml(measured_from(values, "x")))
    result = simulate(
        fleet_for(plan(file)), trace([0, 0, 0], [10] * 3, [1] * 3), closed_loop=ClosedLoop(1, 0.2)
    )
    each = 0.15 + 0.012 + 1e-4 + 55e-8
    np.testing.assert_allclose(result.e2e_s, each, rtol=1e-9)
    np.testing.assert_allclose(np.diff(result.arrival_s), each + 0.2, rtol=1e-9)


def test_later_rounds_wait_for_both_ways(file: Path) -> None:
    values = {**VALUES, "request": {"entry_s": 0.1, "exit_s": 0.05}}
    file.write_text(measured_toml(measured_from(values, "x")))
    rounds = trace(
        [0.0, 0.0], [10, 30], [1, 1], session_id=np.zeros(2, np.int32),
        round=np.arange(2, dtype=np.int32), think_s=np.array([0.0, 1.0]),
    )  # fmt: skip
    result = simulate(fleet_for(plan(file)), rounds)
    assert result.arrival_s[1] == pytest.approx(result.finish_s[0] + 1.0)
    assert result.ttft_s[1] == pytest.approx(0.15 + 0.022 + 1e-4 + 1e-8 * 465)


def test_metrics_warn_beyond_what_was_measured(file: Path) -> None:
    p = plan(file)
    short = simulate(fleet_for(p), trace([0.0], [100], [10]))
    assert metrics(p, short)["timing_error"] == pytest.approx(0.04)
    assert metrics(p, short)["warnings"] == []
    long = simulate(fleet_for(p), trace([0.0], [900], [10]))
    (warning,) = metrics(p, long)["warnings"]
    assert "contexts of 910 lie beyond the 500" in warning


def test_engine_on_other_gpus_is_refused(file: Path) -> None:
    p = plan(file, tensor_parallel_size=2)
    with pytest.raises(InputError, match="measured on an engine of 1 GPU"):
        pool_timing(p, p.pools[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iteration": {**VALUES["iteration"], "decode_batch": [2, 3, 8]}}, "must begin with 1"),
        ({"iteration": {**VALUES["iteration"], "tokens": [10, 10]}}, "must rise"),
        ({"iteration": {**VALUES["iteration"], "tokens": [10]}}, "each batch size needs its time"),
        ({"iteration": {**VALUES["iteration"], "decode_s": [0.0, 1.0, 1.0]}}, "takes some time"),
        ({"iteration": {**VALUES["iteration"], "context_s": -1.0}}, "greater than or equal to 0"),
        ({"kv_token": 3}, "unknown key; did you mean kv_tokens"),
        ({"covariance": {"names": ["a"], "matrix": [[1.0, 2.0]]}}, "1 rows of 1 entries"),
    ],
)
def test_wrong_files_are_explained(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measured_from({**VALUES, **change}, "file")


def test_other_problems_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    with pytest.raises(InputError, match="cannot read"):
        read_measured(file)
    file.write_text("no [toml")
    with pytest.raises(InputError, match="not a TOML"):
        read_measured(file)
    file.write_text("host_s = 0.1\n[measured]\nengine = 'x'\n")
    with pytest.raises(InputError, match="no effect beside"):
        read_measured(file)
    file.write_text("host_s = 0.1\n")
    assert read_measured(file) is None


def test_parts_of_an_engine_need_coefficients(file: Path) -> None:
    from gpusched.domain.catalog import load_gpu
    from gpusched.timing.coefficients import coefficients_for

    with pytest.raises(InputError, match="whole engine"):
        coefficients_for(load_gpu("l40s"), "bf16", "vllm", kind="dense", file=file)


def test_planner_answers_with_a_measured_engine(file: Path) -> None:
    from gpusched.domain.spec import spec_from
    from gpusched.planning.planner import plan_deployment

    spec = yaml.safe_load("""
        model: llama-3.1-8b
        weights_dtype: bf16
        cluster: {nodes: [{name: n, count: 1, gpu: l40s, gpus: 4}]}
        workload: {profile: chat, rate_rps: 0.5, duration_s: 60}
        slo: {ttft_ms: 20000, attainment: 0.5}
        search: {roles: [mixed]}
    """)
    values = {**VALUES, "kv_tokens": 200_000, "max_num_seqs": 64}
    file.write_text(measured_toml(measured_from(values, "x")))
    answer = plan_deployment(spec_from({**spec, "timing": str(file)}))
    (pool,) = answer.plan.pools
    assert pool.tensor_parallel_size == 1
