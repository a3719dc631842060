"""A small language model with random weights, for engines on a machine without GPU or downloads.

Two Llama layers of width 256 over a vocabulary of 1024 byte pairs, 7 MB in float32, as files that
vLLM and transformers read (``config.json``, ``model.safetensors``, tokenizer) and as one GGUF file for
llama.cpp. Both hold the same weights, so engines can be compared token by token. It never ends an
answer by itself in practice: ask for ``max_tokens`` with ``ignore_eos``.
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import user_cache_dir
from gpusched.errors import InputError

Weights = dict[str, NDArray[np.float32]]

VERSION = 1
"""Of the files made here; a folder of another version is made anew."""
NAME = "tiny"

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Head dimension 64 is one that CPU attention kernels know."""

SPECIAL = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TinyModel:
    """Where the model lies."""

    folder: Path
    """What ``vllm serve`` takes."""
    gguf: Path | None
    """What llama.cpp takes; None where the ``gguf`` package is not installed."""

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json."""
        return self.folder / "tokenizer.json"


def tiny_model(folder: Path | None = None, seed: int = 0) -> TinyModel:
    """Return the model, made in ``folder`` (the user's cache if not given) unless it is there.

    Raises:
        InputError: the ``tokenizers`` package is missing, or the folder cannot be written.
    """
    place = folder or user_cache_dir() / "models" / f"{NAME}-{VERSION}-{seed}"
    mark = json.dumps({"version": VERSION, "seed": seed})
    stamp = place / "made-by-gpusched.json"
    gguf = place / "gguf" / f"{NAME}.gguf"
    if not (stamp.is_file() and stamp.read_text() == mark):
        _fill(place, seed, stamp, mark)
    if not gguf.is_file():
        try:
            _write_gguf(gguf, place / "tokenizer.json", random_weights(seed))
        except ImportError:
            return TinyModel(place, None)
    return TinyModel(place, gguf)


def _fill(place: Path, seed: int, stamp: Path, mark: str) -> None:
    """Make the files beside the folder and move them in, so that nobody reads half of one."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            made = Path(scratch) / "model"
            made.mkdir()
            _write_tokenizer(made)
            (made / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
            write_safetensors(made / "model.safetensors", random_weights(seed))
            place.mkdir(exist_ok=True)
            for file in made.iterdir():
                os.replace(file, place / file.name)
        shutil.rmtree(place / "gguf", ignore_errors=True)
        stamp.write_text(mark)
    except OSError as error:
        raise InputError(f"{place}: cannot write the tiny model ({error.strerror})") from None


def sentences(count: int = 4000, seed: int = 0) -> list[str]:
    """Return sentences of made-up words, some frequent and most rare, as words of a language are."""
    rng = np.random.default_rng((seed, 0x7E47))
    syllables = [a + b for a, b in product("bdfgklmnprstvz", "aeiou")]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(800)]
    share = 1.0 / np.arange(1, len(words) + 1)
    drawn = rng.choice(len(words), (count, 12), p=share / share.sum())
    return [" ".join(words[i] for i in row).capitalize() + "." for row in drawn]


def _write_tokenizer(folder: Path) -> None:
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise InputError(
            "the tiny model needs the tokenizers package: pip install 'gpusched[engines]'"
        ) from None
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    unknown, begin, end = SPECIAL
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "bos_token": begin,
        "eos_token": end,
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation) + "\n")


def random_weights(seed: int = 0) -> Weights:
    """Return weights under their names in a Llama checkpoint, variances kept from layer to layer."""
    c = CONFIG
    width, inner, vocabulary = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    queries, keys = (
        c["num_attention_heads"] * c["head_dim"],
        c["num_key_value_heads"] * c["head_dim"],
    )
    rng = np.random.default_rng((seed, 0x71A7))

    def normal(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        deviation = scale / np.sqrt(columns)
        return rng.normal(0.0, deviation, (rows, columns)).astype(np.float32)

    ones = np.ones(width, np.float32)
    weights = {"model.embed_tokens.weight": normal(vocabulary, width, 16.0)}
    for layer in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": ones,
            prefix + "self_attn.q_proj.weight": normal(queries, width),
            prefix + "self_attn.k_proj.weight": normal(keys, width),
            prefix + "self_attn.v_proj.weight": normal(keys, width),
            prefix + "self_attn.o_proj.weight": normal(width, queries),
            prefix + "post_attention_layernorm.weight": ones,
            prefix + "mlp.gate_proj.weight": normal(inner, width),
            prefix + "mlp.up_proj.weight": normal(inner, width),
            prefix + "mlp.down_proj.weight": normal(width, inner),
        }
    weights |= {"model.norm.weight": ones, "lm_head.weight": normal(vocabulary, width)}
    return weights


def write_safetensors(path: Path, weights: Weights) -> None:
    """Write float32 arrays as a safetensors file: length of the header, JSON header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in weights.items():
        header[name] = {
            "dtype": "F32", "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]
        }  # fmt: skip
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in weights.values():
            file.write(array.astype("<f4").tobytes())


_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _write_gguf(path: Path, tokenizer_file: Path, weights: Weights) -> None:
    """Write the same model as one GGUF file."""
    from gguf import GGUFWriter, TokenType

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    c = CONFIG
    writer = GGUFWriter(str(scratch), "llama")
    writer.add_name(NAME)
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_dimension_count(c["head_dim"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_vocab_size(c["vocab_size"])
    model = json.loads(tokenizer_file.read_text("utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, array in weights.items():
        writer.add_tensor(_gguf_name(name), _interleaved(name, array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(scratch, path)


def _gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{_GGUF_NAMES[rest.removesuffix('.weight')]}.weight"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def _interleaved(name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Order the rows of queries and keys as llama.cpp rotates them: pairs side by side, where
    transformers pairs the two halves of a head."""
    if ".q_proj." not in name and ".k_proj." not in name:
        return array
    half = CONFIG["head_dim"] // 2
    heads = array.reshape(-1, 2, half, array.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(array.shape))
