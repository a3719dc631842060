"""The tiny model: the same files every time, tokens that come back as the text they stand for."""

import hashlib
import json

import numpy as np
import pytest

from gpusched.engines.tiny_model import CONFIG, SPECIAL, random_weights, sentences, tiny_model
from gpusched.errors import InputError

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def digests(folder):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.is_file()
    }


def test_is_the_same_wherever_it_is_made(made, tmp_path):
    again = tiny_model(tmp_path / "again")
    assert digests(again.folder) == digests(made.folder)
    assert set(digests(made.folder)) >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_another_seed_gives_other_weights(made, tmp_path):
    other = digests(tiny_model(tmp_path / "other", seed=1).folder)
    mine = digests(made.folder)
    assert other["model.safetensors"] != mine["model.safetensors"]
    assert other["tokenizer.json"] == mine["tokenizer.json"]


def test_is_not_made_twice(made):
    before = (made.folder / "model.safetensors").stat().st_mtime_ns
    assert tiny_model(made.folder) == made
    assert (made.folder / "model.safetensors").stat().st_mtime_ns == before


def test_tokenizer_gives_back_any_text(made):
    tokenizer = tokenizers.Tokenizer.from_file(str(made.tokenizer))
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    assert [tokenizer.token_to_id(t) for t in SPECIAL] == [0, 1, 2]
    for text in [*sentences(20, seed=9), "Grüße, 世界! \t\n{}"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    own = sum(len(tokenizer.encode(text).ids) for text in sentences(50))
    assert own < sum(map(len, sentences(50))) / 2, "its own language takes few tokens"


def test_safetensors_hold_the_weights(made):
    data = (made.folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    weights = random_weights()
    assert set(header) - {"__metadata__"} == set(weights)
    for name, array in weights.items():
        first, last = header[name]["data_offsets"]
        found = np.frombuffer(data[8 + size + first : 8 + size + last], "<f4")
        np.testing.assert_array_equal(found.reshape(header[name]["shape"]), array)


def test_gguf_holds_the_same_weights(made):
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(str(made.gguf))
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = random_weights()
    np.testing.assert_array_equal(tensors["output.weight"], weights["lm_head.weight"])
    rotated = tensors["blk.1.attn_q.weight"].reshape(4, 32, 2, 256)
    halves = weights["model.layers.1.self_attn.q_proj.weight"].reshape(4, 2, 32, 256)
    np.testing.assert_array_equal(rotated[:, :, 0], halves[:, 0])
    np.testing.assert_array_equal(rotated[:, :, 1], halves[:, 1])


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the tiny model"):
        tiny_model(tmp_path / "file" / "model")
