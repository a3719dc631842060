"""Closed loops of users in closed form."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.timing.iteration import model_kind, timing_model
from gpusched.timing.serving import added_prefill_s, aggregated, disaggregated, lone_prefill_s

H100 = load_gpu("h100_sxm")
LLAMA = timing_model(load_model("llama-3.1-8b"), H100, Parallelism(), level=1)
ROOMY = 1e9


def arrays(*values: float) -> list[np.ndarray]:
    return [np.array([float(v)]) for v in values]


@given(st.integers(1, 8192))
def test_a_lone_prefill_is_the_iteration(prompt):
    assert lone_prefill_s(LLAMA, *arrays(prompt))[0] == pytest.approx(LLAMA.prefill_s(prompt))


def test_one_user_decodes_alone():
    _, tpot_s = aggregated(LLAMA, *arrays(1000, 200, 1), ROOMY)
    assert tpot_s[0] == pytest.approx(LLAMA.decode_s(1, 1100))


@given(st.integers(1, 4000), st.integers(1, 200))
def test_a_prompt_costs_less_beside_decodes_than_alone(prompt, batch):
    alone_s = lone_prefill_s(LLAMA, *arrays(prompt))[0]
    assert 0 < added_prefill_s(LLAMA, *arrays(prompt, batch))[0] <= alone_s


@given(st.integers(16, 8000), st.integers(2, 4000), st.integers(1, 400), st.integers(1, 100))
def test_more_users_wait_longer(prompt, output, users, more):
    few = aggregated(LLAMA, *arrays(prompt, output, users), ROOMY)
    many = aggregated(LLAMA, *arrays(prompt, output, users + more), ROOMY)
    assert many[0][0] > few[0][0]
    assert many[1][0] > few[1][0]


def test_users_beyond_the_cache_wait_for_a_place():
    load = arrays(1000, 1000, 64)
    free, full = aggregated(LLAMA, *load, ROOMY), aggregated(LLAMA, *load, 1500.0 * 16)
    assert full[1] < free[1]
    # Four times the users the cache holds: three lives of a request, 1000 tokens each, of waiting.
    assert full[0][0] > 3 * 1000 * full[1][0]


def test_a_saturated_prefill_pool_bounds_throughput():
    prompt, output, users = arrays(8000, 10, 200)
    one, four = (disaggregated(LLAMA, LLAMA, prompt, output, users, *arrays(n, 1)) for n in (1, 4))
    service_s = lone_prefill_s(LLAMA, prompt)[0]
    # Little's law: users = rate * (TTFT + decoding), rate at most one prompt a service time.
    rate = users[0] / (one[0][0] + output[0] * one[1][0])
    assert rate == pytest.approx(1 / service_s, rel=0.05)
    assert four[0][0] < one[0][0] / 3


def test_busiest_expert_rank_holds_up_the_others():
    model = load_model("qwen3-235b-a22b")
    even = timing_model(model, H100, Parallelism(tp=8, ep=8), level=1)
    skewed = replace(even, coefficients=replace(even.coefficients, ep_imbalance=0.1))
    alone = timing_model(model, H100, Parallelism(tp=8), level=1)
    assert skewed.decode_s(64, 1000) > even.decode_s(64, 1000)
    whole = replace(alone, coefficients=skewed.coefficients)
    assert whole.decode_s(64, 1000) == alone.decode_s(64, 1000)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama-3.1-8b", "dense"),
        ("mixtral-8x7b", "moe"),
        ("deepseek-v3", "mla"),
        ("deepseek-v3.2", "sparse"),
        ("qwen3-next-80b-a3b", "linear"),
    ],
)
def test_kinds(name, kind):
    assert model_kind(load_model(name)) == kind
