import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.engine import EngineSettings
from gpusched.errors import InfeasibleError, InputError
from gpusched.moe.overlap import (
    Affine,
    LinearFit,
    OverlapCosts,
    best_split,
    no_overlap,
    ping_pong,
    prefill_costs,
    samples_that_fit,
    solve_overlap,
)
from gpusched.timing.overlap import makespan_s

FIT = LinearFit(Affine(1.7e-4, 8.59e-14), Affine(1.5e-4, 1.54e-14), Affine(1e-5, 1.28e-9))


def rates(floor=0.0):
    return st.builds(Affine, st.floats(0, 3), st.floats(0.01, 3), st.floats(0, floor))


costs = st.builds(
    OverlapCosts,
    layers=st.integers(1, 12), attention=rates(2.0), shared=rates(2.0), expert=rates(5.0), exchange=rates(1.0),
    attention_gpus=st.integers(1, 4), tokens_per_sample=st.sampled_from([1.0, 16.0]),
    top_k=st.just(2), experts=st.just(16),
)  # fmt: skip


def time(cost, size):
    return max(cost.floor_s, cost.fixed_s + cost.unit_s * size)


def rate(own, samples, r1, r2, order):
    tokens = own.expert_tokens_per_sample * samples / r2
    span = makespan_s(
        own.layers, r1, r2, time(own.attention, samples), time(own.shared, samples),
        time(own.expert, tokens), time(own.exchange, tokens), order,
    )  # fmt: skip
    return r1 * samples * own.attention_gpus / span


@given(costs, st.integers(1, 8))
def test_the_solver_finds_the_best_of_all_cuts(own, most):
    found = solve_overlap(own, most, r1_cap=4, r2_cap=8)
    every = [
        rate(own, m, r1, r2, order)
        for m in range(1, most + 1)
        for r1 in range(1, min(4, most // m) + 1)
        for r2 in range(1, 9)
        for order in ("asas", "aass")
    ]
    assert found.samples_per_s == pytest.approx(max(every), rel=1e-9)
    assert found.samples * found.r1 <= most
    assert rate(own, *found[:4]) == pytest.approx(found.samples_per_s)


@given(costs, st.integers(1, 12))
def test_finer_cuts_are_never_worse(own, most):
    fine, coarse, none = (solve(own, most) for solve in (solve_overlap, ping_pong, no_overlap))
    assert fine.samples_per_s >= coarse.samples_per_s * (1 - 1e-12)
    assert coarse.r2 == 1
    assert fine.samples_per_s >= none.samples_per_s * (1 - 1e-12)
    assert none.r1 == none.r2 == 1


@given(costs, st.integers(1, 4), st.integers(1, 4))
def test_throughput_grows_with_samples_and_micro_batches(own, r1, r2):
    by_samples = [rate(own, m, r1, r2, "asas") for m in range(1, 6)]
    by_count = [rate(own, 2, n, r2, "asas") for n in range(1, 6)]
    for values in (by_samples, by_count):
        assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(values))


@given(costs, st.integers(1, 4))
def test_makespan_is_convex_in_the_size_of_pieces(own, r1):
    r2 = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    spans = np.array([1 / rate(own, 2, r1, int(r), "asas") for r in r2])
    u = 1 / r2
    slopes = np.diff(spans) / np.diff(u)
    assert (np.diff(slopes[::-1]) >= -1e-7 * np.abs(spans).max()).all()


def test_free_splitting_never_hurts_and_dear_pieces_are_not_cut():
    free = OverlapCosts(
        6, Affine(0, 1), Affine(0, 0.5), Affine(0, 1), Affine(0, 0.7), 1, 8.0, 2, 16
    )
    spans = [1 / rate(free, 2, 2, r2, "asas") for r2 in range(1, 9)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(spans))
    dear = OverlapCosts(
        6, Affine(0, 1), Affine(0, 0.5), Affine(50, 1), Affine(50, 0.7), 1, 8.0, 2, 16
    )
    assert solve_overlap(dear, 4).r2 == 1
    assert solve_overlap(free, 4, least_tokens=1e9).r2 == 1


def test_three_micro_batches_fill_ping_pong_on_a_fast_link_and_four_on_a_slow_one():
    # MegaScale-Infer's rule: r1 >= 2 (1 + t_x / t_f) with attention and experts of equal time
    def span_per_batch(r1, t_x):
        return makespan_s(400, r1, 1, 1.0, 0.0, 1.0, t_x) / (400 * r1)

    assert span_per_batch(3, 0.45) == pytest.approx(1.0, rel=0.01)
    assert span_per_batch(2, 0.45) > 1.4
    assert span_per_batch(4, 0.95) == pytest.approx(1.0, rel=0.01)
    assert span_per_batch(3, 0.95) > 1.25


@given(costs, st.integers(1, 8), st.integers(1, 5000))
def test_pieces_keep_every_token(own, most, tokens):
    found = solve_overlap(own, most)
    pieces = found.pieces(tokens)
    assert sum(pieces) == tokens
    assert len(pieces) == found.r2
    assert min(pieces) >= 0


def test_costs_of_models():
    deepseek, qwen = load_model("deepseek-v2"), load_model("qwen3-235b-a22b")
    found = prefill_costs(qwen, FIT, 2, 6, 1024)
    a = qwen.attention
    wide = a.query_heads * a.head_dim
    products = 1024 * qwen.hidden * (2 * wide + 2 * a.kv_heads * a.head_dim)
    pairs = 1024**2 * a.query_heads * 2 * a.head_dim
    assert found.attention.unit_s == pytest.approx(products * 8.59e-14 + pairs * 1.54e-14)
    assert found.attention.fixed_s == pytest.approx(4 * 1.7e-4 + 1.5e-4)
    assert found.shared == Affine(0, 0)
    assert found.layers == qwen.moe_layers
    assert prefill_costs(deepseek, FIT, 2, 6, 1024).shared.unit_s > 0
    more = prefill_costs(deepseek, FIT, 2, 3, 1024)
    assert more.expert.unit_s == pytest.approx(
        2 * prefill_costs(deepseek, FIT, 2, 6, 1024).expert.unit_s
    )
    with pytest.raises(InputError, match="has no experts"):
        prefill_costs(load_model("llama-3.1-8b"), FIT, 1, 1, 10)
    with pytest.raises(InputError, match="expert_gpus at most 160"):
        prefill_costs(deepseek, FIT, 1, 161, 10)


def test_division_of_gpus():
    model = load_model("qwen3-235b-a22b")
    found = best_split(8, lambda ag, eg: prefill_costs(model, FIT, ag, eg, 2048), lambda ag, eg: 4)
    every = [
        solve_overlap(prefill_costs(model, FIT, ag, 8 - ag, 2048), 4).samples_per_s
        for ag in range(1, 8)
    ]
    assert found.overlap.samples_per_s == max(every)
    assert found.attention_gpus + found.expert_gpus == 8
    with pytest.raises(InfeasibleError, match="1 GPUs cannot be divided"):
        best_split(1, lambda ag, eg: None, lambda ag, eg: 1)


def test_memory_limits():
    model, gpu = load_model("deepseek-v2"), load_gpu("h100_sxm")
    fits = samples_that_fit(model, gpu, 3, 8, 4096, weights_dtype="bf16")
    shorter = samples_that_fit(model, gpu, 3, 8, 1024, weights_dtype="bf16")
    assert 1 <= fits < shorter
    with pytest.raises(InfeasibleError, match="use more than 4 expert GPUs"):
        samples_that_fit(model, gpu, 4, 4, 4096, weights_dtype="bf16")
    small = EngineSettings(gpu_memory_utilization=0.3)
    with pytest.raises(InfeasibleError, match="less than one sample"):
        samples_that_fit(model, gpu, 3, 64, 4096, weights_dtype="bf16", engine=small)


def test_impossible_costs_are_named():
    with pytest.raises(InputError, match="gemm: must be finite"):
        LinearFit(Affine(float("nan"), 1), Affine(0, 1), Affine(0, 1))
    with pytest.raises(InputError, match="expert: must be finite and at least 0"):
        OverlapCosts(1, Affine(0, 1), Affine(0, 1), Affine(-1, 1), Affine(0, 1), 1, 1, 1, 1)
    good = OverlapCosts(1, Affine(0, 1), Affine(0, 1), Affine(0, 1), Affine(0, 1), 1, 1, 1, 1)
    with pytest.raises(InputError, match="max_samples"):
        solve_overlap(good, 0)
    with pytest.raises(InputError, match="tokens_per_sample"):
        OverlapCosts(1, Affine(0, 1), Affine(0, 1), Affine(0, 1), Affine(0, 1), 1, np.nan, 1, 1)
