"""The catalog against published parameter counts and KV sizes."""

import pytest

from gpusched.domain.catalog import aliases, gpu_names, load_gpu, load_model, model_names
from gpusched.errors import InputError

# name: (parameters in 1e9, KV KiB a token at two bytes)
PUBLISHED = {
    "llama-2-7b": (6.74, 512), "llama-2-13b": (13.02, 800), "llama-2-70b": (68.98, 320),
    "llama-30b": (32.53, 1560), "llama-65b": (65.28, 2560), "llama-3.1-8b": (8.03, 128),
    "llama-3.1-70b": (70.55, 320), "llama-3.1-405b": (405.85, 504), "llama-3.2-1b": (1.24, 32),
    "llama-3.2-3b": (3.21, 112), "qwen2.5-0.5b": (0.49, 12), "qwen2.5-1.5b": (1.54, 28),
    "qwen2.5-3b": (3.09, 36), "qwen2.5-7b": (7.62, 56), "qwen2.5-14b": (14.77, 192),
    "qwen2.5-32b": (32.76, 256), "qwen2.5-72b": (72.70, 320), "qwen3-0.6b": (0.60, 112),
    "qwen3-1.7b": (1.72, 112), "qwen3-4b": (4.02, 144), "qwen3-8b": (8.19, 144),
    "qwen3-14b": (14.77, 160), "qwen3-32b": (32.76, 256), "bloom-176b": (176.2, 3920),
    "mixtral-8x7b": (46.7, 128), "qwen3-30b-a3b": (30.5, 96), "qwen3-235b-a22b": (235.1, 188),
    "gpt-oss-20b": (20.9, 48), "gpt-oss-120b": (116.8, 72), "deepseek-v2": (235.7, 67.5),
    "deepseek-v3": (671.0, 68.625),
}  # fmt: skip
ACTIVE = {"mixtral-8x7b": 12.9, "qwen3-30b-a3b": 3.35, "qwen3-235b-a22b": 22.2, "gpt-oss-20b": 4.19,
          "gpt-oss-120b": 5.71, "deepseek-v2": 21.4, "deepseek-v3": 37.6}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_kv_match_the_published_figures(name):
    model = load_model(name)
    billions, kib = PUBLISHED[name]
    assert model.parameters / 1e9 == pytest.approx(billions, rel=0.006, abs=0.005)
    assert model.kv_bytes_per_token() / 1024 == pytest.approx(kib, rel=1e-9)


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters(name):
    assert load_model(name).active_parameters / 1e9 == pytest.approx(ACTIVE[name], rel=0.006)


def test_one_layer_of_latent_attention():
    assert load_model("deepseek-v2").attention_parameters / 1e6 == pytest.approx(149.2, rel=1e-3)
    assert load_model("deepseek-v3").attention_parameters / 1e6 == pytest.approx(187.1, rel=1e-3)


def test_names_that_state_a_size_keep_their_word():
    for name, billions in (("qwen3.5-397b-a17b", 397), ("qwen3-next-80b-a3b", 80), ("glm-5", 744)):
        assert load_model(name).parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_every_entry_loads_with_a_source_and_sane_figures():
    for name in gpu_names():
        gpu = load_gpu(name)
        assert gpu.source
        assert gpu.as_of
        assert 0 < gpu.idle_w < gpu.tdp_w
        assert gpu.usd_per_hour <= gpu.usd_per_hour_hyperscaler
        assert gpu.flops["bf16"] > 1e13
    for name in model_names():
        assert load_model(name).source


def test_names_resolve_by_alias_in_any_case():
    assert load_gpu("H100").name == "h100_sxm"
    assert load_gpu("h100-sxm").name == "h100_sxm"
    assert load_model("deepseek-ai/DeepSeek-R1").name == "deepseek-v3"
    known = [alias.lower() for names in aliases("models").values() for alias in names]
    assert len(known) == len(set(known))


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match="h100_sxm"):
        load_gpu("h100_sxn")
    with pytest.raises(InputError, match=r"llama-3\.1-70b"):
        load_model("llama-3.1-71b")
