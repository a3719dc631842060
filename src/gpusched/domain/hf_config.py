"""Read a model's architecture from any Hugging Face ``config.json`` of a decoder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpusched.domain.model import (
    GroupedQueryAttention,
    LatentAttention,
    LinearAttention,
    MixtureOfExperts,
    Model,
)
from gpusched.errors import InputError

UNGATED_FFN = {"bloom", "falcon", "gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2"}
BIASED_QKV = {"qwen2", "qwen2_moe", "gpt_oss", "bloom", "gpt2", "gpt_neox", "opt"}
TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3", "gemma3_text", "bloom", "gpt2", "falcon"}


class _Config:
    """The text part of a configuration, whose keys go by several names."""

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self.values = values
        self.origin = origin

    def get(self, *names: str) -> Any:
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def integer(self, *names: str, default: int | None = None) -> int:
        value = self.get(*names)
        if value is None:
            if default is None:
                raise InputError(
                    f"{self.origin}: no {' or '.join(names)}; this is not the config.json of a "
                    "decoder-only transformer that can be read"
                )
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
            raise InputError(f"{self.origin}: {names[0]} must be a whole number, got {value!r}")
        return value

    def layer_list(self, name: str) -> list[Any]:
        value = self.get(name)
        return value if isinstance(value, list) else []


def read_hf_config(path: str | Path) -> Model:
    """Return the architecture in a ``config.json``, or in the folder that holds one.

    Understands grouped-query and latent attention, mixtures of experts with shared experts and
    leading dense layers, sliding windows, linear-attention layers, and nested text parts.

    Raises:
        InputError: the file is missing or is not JSON, or a key it needs is missing or wrong.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot read the model's configuration ({error.strerror})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a JSON file ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: expected a JSON object with the model's configuration")
    name = file.parent.name if file.name == "config.json" else file.stem
    return model_from_config(values, name=name or "model", origin=str(file))


def model_from_config(values: Mapping[str, Any], *, name: str, origin: str) -> Model:
    """Return the architecture in the parsed content of a ``config.json``.

    Raises:
        InputError: a key that is needed is missing or wrong.
    """
    text: Mapping[str, Any] = next(
        (values[k] for k in ("text_config", "llm_config") if isinstance(values.get(k), dict)), {}
    )
    config = _Config({**values, **text}, origin)
    kind = str(config.get("model_type") or "")
    if values.get("is_encoder_decoder"):
        raise InputError(
            f"{origin}: an encoder-decoder model; only decoder-only ones can be planned"
        )
    layers = config.integer("num_hidden_layers", "n_layer", "num_layers")
    hidden = config.integer("hidden_size", "n_embd", "d_model")
    moe = _experts(config)
    window, sliding_layers = _sliding(config, kind, layers)
    linear, linear_layers = _linear(config, layers)
    ffn = config.integer(
        "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=4 * hidden
    )
    dense_layers = _dense_layers(config, layers) if moe is not None else 0
    tied = config.get("tie_word_embeddings")
    return Model(
        name=name,
        layers=layers,
        hidden=hidden,
        vocab=config.integer("vocab_size"),
        attention=_attention(config, kind, hidden),
        ffn_dim=ffn if moe is None or dense_layers else 0,
        gated_ffn=kind not in UNGATED_FFN,
        tied_embeddings=bool(tied) if tied is not None else kind in TIED_BY_DEFAULT,
        moe=moe,
        dense_layers=dense_layers,
        sliding_window=window,
        sliding_layers=sliding_layers,
        linear_attention=linear,
        linear_layers=linear_layers,
        native_dtype=_native_dtype(values, config),
        max_context_tokens=config.integer(
            "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", default=131072
        ),
        source=f"{origin} (model type {kind or 'not stated'})",
    )


def _attention(config: _Config, kind: str, hidden: int) -> GroupedQueryAttention | LatentAttention:
    heads = config.integer("num_attention_heads", "n_head", "num_heads")
    if heads < 1:
        raise InputError(f"{config.origin}: num_attention_heads must be at least 1")
    if config.get("kv_lora_rank") is not None:
        rank = config.get("q_lora_rank")
        top_k = config.get("index_topk")
        return LatentAttention(
            query_heads=heads,
            query_rank=config.integer("q_lora_rank") if rank is not None else None,
            kv_rank=config.integer("kv_lora_rank"),
            nope_dim=config.integer("qk_nope_head_dim"),
            rope_dim=config.integer("qk_rope_head_dim"),
            value_dim=config.integer("v_head_dim"),
            sparse_top_k=config.integer("index_topk") if top_k is not None else None,
        )
    one_kv_head = config.get("multi_query") is True and not config.get("new_decoder_architecture")
    kv_heads = config.integer(
        "num_key_value_heads", "num_kv_heads", "n_head_kv", default=1 if one_kv_head else heads
    )
    if not 1 <= kv_heads <= heads:
        raise InputError(
            f"{config.origin}: num_key_value_heads must lie between 1 and the {heads} query heads, "
            f"got {kv_heads}"
        )
    return GroupedQueryAttention(
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=config.integer("head_dim", default=hidden // heads),
        qkv_bias=bool(config.get("attention_bias")) or kind in BIASED_QKV,
        output_gate=bool(config.get("attn_output_gate"))
        or kind.startswith(("qwen3_next", "qwen3_5")),
    )


def _experts(config: _Config) -> MixtureOfExperts | None:
    experts = config.integer(
        "n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", default=0
    )
    if experts < 2:
        return None
    width = config.integer("moe_intermediate_size", "expert_intermediate_size", "intermediate_size")
    shared = config.integer(
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        default=width * config.integer("n_shared_experts", "num_shared_experts", default=0),
    )
    return MixtureOfExperts(
        experts=experts,
        top_k=config.integer(
            "num_experts_per_tok", "moe_top_k", "num_experts_per_token", "moe_topk"
        ),
        expert_dim=width,
        shared_dim=shared,
    )


def _dense_layers(config: _Config, layers: int) -> int:
    listed = config.layer_list("moe_layer_freq")
    if listed:
        return sum(not flag for flag in listed)
    leading = config.integer("first_k_dense_replace", default=0)
    only = config.layer_list("mlp_only_layers")
    step = config.get("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step")
    if isinstance(step, int) and step > 1:
        return layers - (layers - leading) // step
    return min(max(leading, len(only)), layers)


def _sliding(config: _Config, kind: str, layers: int) -> tuple[int | None, int]:
    window = config.get("sliding_window", "attention_window_size")
    if not isinstance(window, int) or window < 1 or config.get("use_sliding_window") is False:
        return None, 0
    kinds = config.layer_list("layer_types")
    if kinds:
        count = sum(layer == "sliding_attention" for layer in kinds)
    elif isinstance(config.get("sliding_window_pattern"), int):
        count = layers - layers // max(config.get("sliding_window_pattern"), 1)
    elif kind.startswith("gemma3"):
        count = layers - layers // 6
    elif kind in ("gemma2", "gpt_oss", "cohere2"):
        count = layers - layers // (4 if kind == "cohere2" else 2)
    else:
        count = layers
    return (window, count) if count else (None, 0)


def _linear(config: _Config, layers: int) -> tuple[LinearAttention | None, int]:
    if config.get("linear_num_value_heads") is None:
        return None, 0
    kinds = config.layer_list("layer_types")
    interval = config.integer("full_attention_interval", default=4)
    count = (
        sum(layer == "linear_attention" for layer in kinds)
        if kinds
        else layers - layers // max(interval, 1)
    )
    linear = LinearAttention(
        key_heads=config.integer("linear_num_key_heads"),
        value_heads=config.integer("linear_num_value_heads"),
        key_dim=config.integer("linear_key_head_dim"),
        value_dim=config.integer("linear_value_head_dim"),
        conv_kernel=config.integer("linear_conv_kernel_dim", default=4),
    )
    return (linear, count) if count else (None, 0)


def _native_dtype(values: Mapping[str, Any], config: _Config) -> str:
    quantization = values.get("quantization_config") or config.get("quantization_config") or {}
    text = json.dumps(quantization, default=str).lower()
    for mark, dtype in (("mxfp4", "mxfp4"), ("nvfp4", "nvfp4"), ("fp8", "fp8"), ("float8", "fp8")):
        if mark in text:
            return dtype
    if quantization:
        if '"num_bits": 4' in text or '"bits": 4' in text or "awq" in text:
            return "int4"
        if '"num_bits": 8' in text or '"bits": 8' in text:
            return "int8"
    return "bf16"
