"""Comparison of policies: paired, repeatable, and honest about chance."""

import pickle
import sys

import numpy as np
import pytest

from gpusched.domain.plan import Plan
from gpusched.errors import InputError
from gpusched.sim.compare import (
    LATENCIES,
    SHARES,
    Variant,
    compare,
    latencies_within,
    replication,
    with_policies,
    with_prediction_errors,
)
from gpusched.sim.deploy import fleet_for
from gpusched.sim.simulate import simulate

PLAN = Plan.model_validate(
    {
        "model": "llama-3.1-8b",
        "weights_dtype": "bf16",
        "cluster": {"nodes": [{"name": "n", "gpu": "h100_sxm"}]},
        "pools": [{"name": "engines", "nodes": "n", "gpu": "h100_sxm", "replicas": 4}],
        "workload": {"profile": "chat", "rate_rps": 60, "duration_s": 60},
        "slo": {"ttft_ms": 500, "tpot_ms": 40},
    }
)
STATIC, VLLM = Variant("static", "round-robin"), Variant("vllm", "least-tokens")


def changed(**sections):
    values = PLAN.model_dump(mode="json", exclude_none=True)
    for name, section in sections.items():
        values[name] = section if isinstance(section, list) else {**values[name], **section}
    return Plan.model_validate(values)


def test_a_policy_compared_with_itself_is_the_same():
    _, row = compare(PLAN, [VLLM, VLLM], replications=3)
    assert row.verdict() == "same"
    assert all(e.difference == 0 == e.difference_half_width for e in row.estimates.values())


def test_a_clear_winner_is_told_apart():
    _, row = compare(PLAN, [STATIC, VLLM], replications=4)
    assert row.verdict("ttft_s.mean") == "better"
    assert row.estimates["ttft_s.mean"].difference < 0
    assert row.estimates["ttft_s.mean"].p < 0.01


def test_one_replication_proves_nothing():
    _, row = compare(PLAN, [STATIC, VLLM], replications=1)
    assert row.verdict("ttft_s.mean") == "noise"


def test_estimates_are_those_of_the_replications():
    rows = compare(PLAN, [STATIC, VLLM], replications=3)
    for row in rows:
        for name, estimate in row.estimates.items():
            own, first = row.sample(name), rows[0].sample(name)
            assert estimate.mean == pytest.approx(own.mean())
            assert estimate.difference == pytest.approx((own - first).mean())


def bare(row):
    """A row but for the time its simulations took."""
    figures = [{k: v for k, v in run.items() if "wall" not in k} for run in row.replications]
    latencies = {name: values.tolist() for name, values in row.curves.latencies_s.items()}
    return (
        row.variant,
        row.rate_scale,
        row.estimates,
        figures,
        latencies,
        row.curves.kv_use.tolist(),
    )


def test_processes_give_the_same_figures():
    variants = [Variant("vllm", "round-robin"), Variant("sjf", "power-of-two")]
    options = {"replications": 2, "rate_scales": (0.5, 1.0)}
    one, two = compare(PLAN, variants, **options), compare(PLAN, variants, jobs=2, **options)
    assert [bare(r) for r in one] == [bare(r) for r in two]
    assert [r.rate_scale for r in one] == [0.5, 0.5, 1.0, 1.0]
    assert [r.variant for r in one] == variants * 2


def test_a_ray_cluster_gives_the_same_figures(monkeypatch):
    class Ray:
        """Runs a task when its answer is asked for, after a trip through pickle."""

        def init(self, address, log_to_driver):
            assert address == "auto"

        def remote(self, function):
            class Remote:
                remote = staticmethod(lambda task: pickle.dumps((function, task)))

            return Remote

        def get(self, reference):
            function, task = pickle.loads(reference)
            return pickle.loads(pickle.dumps(function(task)))

        def shutdown(self):
            pass

    monkeypatch.setitem(sys.modules, "ray", Ray())
    here = compare(PLAN, [STATIC, VLLM], replications=2)
    there = compare(PLAN, [STATIC, VLLM], replications=2, ray_address="auto")
    assert [bare(r) for r in here] == [bare(r) for r in there]


def test_what_a_simulation_sends_back_is_bounded():
    rows = compare(changed(workload={"rate_rps": 120}), [VLLM], replications=2)
    for row in rows:
        assert all(len(values) == len(SHARES) <= 210 for values in row.curves.latencies_s.values())
        assert len(row.curves.kv_use) + 1 == len(row.curves.series_s) <= 1025
        assert 0 <= row.curves.kv_use.min() <= row.curves.kv_use.max() <= 1
    assert len(pickle.dumps(rows)) < 100_000


def test_latency_curves_are_order_statistics():
    trace = replication(PLAN, 1.0, 0, 1, 0)
    result = simulate(fleet_for(with_policies(PLAN, VLLM)), trace)
    found = latencies_within(result, result.arrival_s >= 10.0)
    counted = result.e2e_s[result.arrival_s >= 10.0]
    for share, value in zip(SHARES, found["e2e"], strict=True):
        assert (counted <= value).mean() >= share - 1e-12
        assert (counted < value).mean() < share
    several = result.tpot_s[(result.arrival_s >= 10.0) & (result.output_tokens > 1)]
    assert found["tpot"][-1] == several.max()


def test_rejected_requests_never_end_in_the_curves():
    engine = {"gpu_memory_utilization": 0.24}
    pools = [{"name": "engines", "nodes": "n", "gpu": "h100_sxm", "replicas": 4, "engine": engine}]
    (row,) = compare(changed(pools=pools), [VLLM], replications=2)
    rejected = np.mean([run["rejected"] / run["requests"] for run in row.replications])
    assert 0.0 < rejected < 0.5
    for name in LATENCIES:
        values = row.curves.latencies_s[name]
        assert np.isfinite(values[SHARES < 0.5]).all()
        assert np.isinf(values[-1])


def test_all_variants_serve_the_same_requests():
    first = replication(PLAN, 1.0, 2, 5, 0)
    assert np.array_equal(first.arrival_s, replication(PLAN, 1.0, 2, 5, 0).arrival_s)
    assert not np.array_equal(
        first.prompt_tokens[:50], replication(PLAN, 1.0, 3, 5, 0).prompt_tokens[:50]
    )


def test_windows_of_a_file_cover_it(shared):
    workload = {"trace": str(shared / "traces/azure_2023_conv.parquet")}
    plan = PLAN.model_copy(update={"workload": type(PLAN.workload)(**workload)})
    whole = replication(plan, 1.0, 0, 1, 0)
    parts = [replication(plan, 1.0, i, 4, 0) for i in range(4)]
    assert sum(map(len, parts)) == len(whole)


def test_prediction_errors_multiply_the_policies_that_predict():
    named = ["vllm", "mc-sf", "sjf+predictor=mean", "nested-wait", "a-min+restart=true"]
    assert with_prediction_errors(named, [0.0, 0.2, 0.5]) == [
        "vllm",
        "mc-sf",
        "mc-sf+predictor=oracle",
        "mc-sf+predictor=noisy:0.2",
        "mc-sf+predictor=noisy:0.5",
        "sjf+predictor=mean",
        "nested-wait",
        "a-min+restart=true",
        "a-min+restart=true+predictor=oracle",
        "a-min+restart=true+predictor=noisy:0.2",
        "a-min+restart=true+predictor=noisy:0.5",
    ]
    assert with_prediction_errors(named, []) == named
    with pytest.raises(InputError, match="mc-sf"):
        with_prediction_errors(["mc-fs"], [0.2])


def test_policies_reach_the_engines():
    plan = with_policies(PLAN, Variant("mc-sf+margin=0.1", "random"))
    assert plan.routing == "random"
    assert {pool.batching for pool in fleet_for(plan).pools} == {"mc-sf+margin=0.1"}
    assert str(Variant("vllm", "random", "none")) == "vllm + random"


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Variant("vllm", "lest-tokens"), "least-tokens"),
        (Variant("mc-fs", "least-tokens"), "mc-sf"),
        (Variant("vllm", "least-tokens", "shed"), "admission"),
    ],
)
def test_unknown_policies_are_named(variant, words):
    with pytest.raises(InputError, match=words):
        compare(PLAN, [variant])


def test_batching_of_split_plans_cannot_be_compared():
    pool = {"nodes": "n", "gpu": "h100_sxm", "replicas": 2}
    pools = [{**pool, "name": "p", "role": "prefill"}, {**pool, "name": "d", "role": "decode"}]
    plan = changed(pools=pools)
    rows = compare(
        plan, [Variant("vllm", r) for r in ("round-robin", "least-tokens")], replications=2
    )
    assert len(rows) == 2
    with pytest.raises(InputError, match="separates prefill from decode"):
        compare(plan, [Variant("sjf", "least-tokens")])


def test_the_rate_of_a_closed_loop_cannot_be_scaled():
    plan = changed(workload={"users": 20})
    assert len(compare(plan, [VLLM], replications=1)) == 1
    with pytest.raises(InputError, match="20 users"):
        compare(plan, [VLLM], rate_scales=(1.0, 2.0))
