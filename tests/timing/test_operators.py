"""Operators and collectives: worked values and limits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.timing.collectives import all_reduce_s, expert_exchange_s, stage_hop_s
from gpusched.timing.iteration import timing_model
from gpusched.timing.operators import arithmetic_flops, experts_read, gemm_for, p_norm

H100 = load_gpu("h100_sxm")
PHYSICS = timing_model(load_model("llama-3.1-8b"), H100, Parallelism(), level=1).coefficients
positive = st.floats(1e-9, 1e3)


@pytest.mark.parametrize(("m", "expected_us"), [(1, 15.390), (256, 19.316), (4096, 178.180)])
def test_worked_products(m, expected_us):
    gemm = gemm_for(H100, "bf16", 2.0, PHYSICS)
    assert gemm.time_s(np.array(float(m)), 4096, 4096) * 1e6 == pytest.approx(expected_us, abs=1e-3)


@given(positive, positive, st.floats(1, 60))
def test_norm_lies_between_maximum_and_sum(a, b, p):
    value = float(p_norm(np.array(a), np.array(b), p))
    assert max(a, b) <= value * (1 + 1e-12)
    assert value <= (a + b) * (1 + 1e-12)


@given(positive, positive)
def test_norm_becomes_the_roofline(a, b):
    assert float(p_norm(np.array(a), np.array(b), 1e3)) == max(a, b)


def test_experts_read():
    assert experts_read(128, 8, np.array(1.0)) == pytest.approx(8)
    assert experts_read(128, 8, np.array(1e6)) == pytest.approx(128)
    # Two tokens choose two of four: 4 (1 - 1/4) = 3 distinct ones on average.
    assert experts_read(4, 2, np.array(2.0)) == pytest.approx(3)


def test_one_expert_that_all_choose_is_a_dense_layer_up_to_launches():
    mixtral = load_model("mixtral-8x7b")
    moe = replace(mixtral.moe, experts=1, top_k=1)
    single = timing_model(replace(mixtral, moe=moe), H100, Parallelism(), level=1)
    dense_model = replace(mixtral, moe=None, dense_layers=0, ffn_dim=moe.expert_dim)
    dense = timing_model(dense_model, H100, Parallelism(), level=1)
    assert single.decode_s(1, 512) == pytest.approx(dense.decode_s(1, 512), rel=0.15)


def test_unsupported_formats_multiply_in_the_next_wider_one():
    a100 = load_gpu("a100_sxm")
    assert arithmetic_flops(a100, "fp8") == a100.flops["bf16"]
    assert arithmetic_flops(H100, "nvfp4") == H100.flops["fp8"]
    assert arithmetic_flops(H100, "mxfp4") == H100.flops["bf16"]
    assert arithmetic_flops(a100, "int8") == a100.flops["int8"]


def test_all_reduce():
    size = np.array([0.0, 1e6])
    assert (all_reduce_s(size, 1, H100, PHYSICS) == 0).all()
    # alpha + 2 (g - 1) / g size / B with the figures of four H100.
    expected = 4.6e-6 + 1.5 * 1e6 / 356e9
    assert all_reduce_s(size, 4, H100, PHYSICS)[1] == pytest.approx(expected)
    inside, across = (all_reduce_s(size, g, H100, PHYSICS)[1] for g in (8, 16))
    assert across > 2 * inside


def test_expert_exchange_grows_with_tokens_and_leaves_the_node_at_a_price():
    tokens = np.array([1.0, 64.0, 128.0, 1024.0, 8192.0])
    local = expert_exchange_s(tokens, 7168, 8, 8, H100, PHYSICS)
    assert (np.diff(local) > 0).all()
    assert (expert_exchange_s(tokens, 7168, 8, 1, H100, PHYSICS) == 0).all()
    assert (expert_exchange_s(tokens, 7168, 8, 16, H100, PHYSICS) > local).all()
    # Measured on eight H100 with DeepEP: 968 us dispatch and 1797 us combine of 8192 tokens.
    assert local[-1] == pytest.approx(2.765e-3, rel=0.05)


def test_stage_hop():
    # 10 us and 8 MiB at 80 % of one direction of NVLink.
    hop = stage_hop_s(np.array(1024.0), 4096, H100, PHYSICS)
    assert hop == pytest.approx(10e-6 + 1024 * 4096 * 2 / (0.8 * 450e9))
