"""Memory: closed forms of weights and KV cache, and what an engine has left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.engine import EngineSettings
from gpusched.domain.parallel import Parallelism
from gpusched.timing.memory import memory, weights_bytes

KIB = 1024.0


@pytest.mark.parametrize(
    ("name", "billions", "kv_kib"),
    [
        ("llama-2-7b", 6.74, 512), ("llama-2-13b", 13.02, 800), ("llama-2-70b", 68.98, 320),
        ("llama-3.1-8b", 8.03, 128), ("llama-3.1-70b", 70.55, 320), ("llama-3.1-405b", 405.85, 504),
        ("llama-3.2-1b", 1.24, 32), ("llama-3.2-3b", 3.21, 112), ("qwen2.5-72b", 72.70, 320),
        ("qwen3-8b", 8.19, 144), ("qwen3-32b", 32.76, 256), ("mixtral-8x7b", 46.7, 128),
        ("qwen3-30b-a3b", 30.5, 96), ("qwen3-235b-a22b", 235.1, 188), ("gpt-oss-120b", 116.8, 72),
        ("deepseek-v2", 235.7, 67.5), ("deepseek-v3", 671.0, 68.6),
    ],
)  # fmt: skip
def test_parameters_and_cache_of_known_models(name, billions, kv_kib):
    model = load_model(name)
    assert model.parameters / 1e9 == pytest.approx(billions, rel=4e-3)
    assert model.kv_bytes_per_token(2.0) / KIB == pytest.approx(kv_kib, rel=1e-3)


def test_weights_are_split_over_the_replica():
    llama, mixtral = load_model("llama-3.1-70b"), load_model("mixtral-8x7b")
    whole = weights_bytes(llama, Parallelism(), "bf16")
    assert whole == pytest.approx(141.1e9, rel=1e-3)
    assert weights_bytes(llama, Parallelism(tp=4), "bf16") == pytest.approx(whole / 4)
    # Data-parallel attention repeats all but the experts.
    split = weights_bytes(mixtral, Parallelism(tp=1, dp=4, ep=4), "bf16")
    experts = mixtral.layers * mixtral.moe.experts * mixtral.expert_parameters * 2.0
    assert split == pytest.approx(weights_bytes(mixtral, Parallelism(), "bf16") - experts * 3 / 4)


def use(model: str, gpu: str = "h100_sxm", dtype: str = "bf16", tp: int = 1, util: float = 0.9):
    return memory(
        load_model(model), load_gpu(gpu), Parallelism(tp=tp),
        EngineSettings(gpu_memory_utilization=util), weights_dtype=dtype, kv_cache_dtype="bf16",
        max_num_batched_tokens=8192,
    )  # fmt: skip


def test_budget_adds_up():
    m = use("llama-3.1-8b")
    assert m.weights_bytes + m.working_bytes + m.kv_bytes == pytest.approx(0.9 * 80e9)
    assert m.kv_bytes_per_token == 128 * KIB
    assert m.kv_blocks(16, 256) == int(m.kv_bytes / (128 * KIB * 16))


def test_what_does_not_fit_has_no_blocks():
    m = use("llama-3.1-70b")
    assert m.kv_bytes < 0
    assert m.kv_blocks(16, 256) == 0
    assert use("llama-3.1-70b", tp=4).kv_blocks(16, 256) > 0


@given(st.floats(0.3, 0.99), st.floats(0.001, 0.01))
def test_capacity_grows_with_utilization(util, more):
    low, high = (use("llama-3.1-8b", util=u).kv_blocks(16, 256) for u in (util, util + more))
    assert 0 <= low <= high


def test_heads_split_as_far_as_they_go_and_a_latent_not_at_all():
    assert use("llama-3.1-70b", tp=8).kv_bytes_per_token == 40 * KIB
    four_heads = [use("qwen3-235b-a22b", dtype="fp8", tp=tp).kv_bytes_per_token for tp in (4, 8)]
    assert four_heads[0] == four_heads[1]
    latent = [use("deepseek-v3", "h200_sxm", "fp8", tp=tp).kv_bytes_per_token for tp in (1, 8)]
    assert latent[0] == latent[1] == pytest.approx(68.6 * KIB, rel=1e-3)
