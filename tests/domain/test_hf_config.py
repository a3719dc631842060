"""Architectures read from config.json files as Hugging Face publishes them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.catalog import load_model
from gpusched.domain.hf_config import model_from_config, read_hf_config
from gpusched.domain.model import Model
from gpusched.errors import InputError

CONFIGS = {
    "llama-3.1-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2, "sliding_window": None,
    },
    "qwen3-235b-a22b": {
        "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94,
        "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "use_sliding_window": False, "sliding_window": None,
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
        "num_local_experts": 128, "num_experts_per_tok": 4, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
        "first_k_dense_replace": 3, "moe_layer_freq": 1, "quantization_config": {"quant_method": "fp8"},
    },
    "qwen3-next-80b-a3b": {
        "model_type": "qwen3_next", "hidden_size": 2048, "intermediate_size": 5120, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 151936,
        "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "full_attention_interval": 4, "linear_num_key_heads": 16,
        "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    },
    "gemma-3-27b": {
        "model_type": "gemma3", "text_config": {
            "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
            "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024,
            "sliding_window_pattern": 6, "vocab_size": 262208,
        },
    },
    "bloom-176b": {"model_type": "bloom", "n_embed": 14336, "hidden_size": 14336, "n_layer": 70,
                   "num_attention_heads": 112, "vocab_size": 250880},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_what_the_catalog_says(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    read, known = load_model(str(tmp_path / "config.json")), load_model(name)
    for field in (
        "parameters",
        "active_parameters",
        "sliding_layers",
        "linear_layers",
        "dense_layers",
    ):
        assert getattr(read, field) == getattr(known, field), field
    assert read.kv_bytes_per_token() == known.kv_bytes_per_token()
    if "quantization_config" in CONFIGS[name]:
        assert read.native_dtype == known.native_dtype
    assert read_hf_config(tmp_path) == read


def test_missing_key_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    with pytest.raises(InputError, match="hidden_size"):
        read_hf_config(tmp_path)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**6),
    st.text(max_size=4),
    st.floats(),
    st.lists(st.integers(), max_size=3),
)


@given(
    st.sampled_from(sorted(CONFIGS)),
    st.dictionaries(
        st.sampled_from(sorted({k for c in CONFIGS.values() for k in c})), VALUES, max_size=3
    ),
)
def test_damaged_configs_give_a_model_or_a_clear_error(name, changes):
    try:
        assert isinstance(
            model_from_config({**CONFIGS[name], **changes}, name="x", origin="f"), Model
        )
    except InputError as error:
        assert str(error)
