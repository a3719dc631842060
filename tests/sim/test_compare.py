"""Comparison of policies: paired, repeatable, and honest about chance."""

import numpy as np
import pytest

from gpusched.domain.plan import Plan
from gpusched.errors import InputError
from gpusched.sim.compare import Variant, compare, mean_interval, replication

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


def test_a_policy_compared_with_itself_is_the_same():
    variants = [Variant("vllm", "least-tokens"), Variant("vllm", "least-tokens")]
    _, row = compare(PLAN, variants, replications=3)
    assert row.verdict() == "same"
    assert all(e.difference == 0 == e.difference_half_width for e in row.estimates.values())


def test_a_clear_winner_is_told_apart():
    variants = [Variant("static", "round-robin"), Variant("vllm", "least-tokens")]
    _, row = compare(PLAN, variants, replications=4)
    assert row.verdict("ttft_s.mean") == "better"
    assert row.estimates["ttft_s.mean"].difference < 0


def test_one_replication_proves_nothing():
    variants = [Variant("static", "round-robin"), Variant("vllm", "least-tokens")]
    _, row = compare(PLAN, variants, replications=1)
    assert row.verdict("ttft_s.mean") == "noise"


def test_processes_give_the_same_figures():
    variants = [Variant("vllm", "round-robin"), Variant("vllm", "power-of-two")]
    options = {"replications": 2, "rate_scales": (0.5, 1.0)}
    one, two = compare(PLAN, variants, **options), compare(PLAN, variants, jobs=2, **options)
    assert [r.estimates for r in one] == [r.estimates for r in two]
    assert [r.rate_scale for r in one] == [0.5, 0.5, 1.0, 1.0]


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


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        mean, half = mean_interval(rng.normal(1.0, 2.0, 6))
        hits += abs(mean - 1.0) <= half
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_unknown_policies_are_named():
    with pytest.raises(InputError, match="least-tokens"):
        compare(PLAN, [Variant("vllm", "lest-tokens")])
