"""The value head, and the loop inside transformers; skipped where torch is not installed."""

import numpy as np
import pytest

from gpusched.errors import InputError
from gpusched.sampling.controlled.markov import MarkovModel
from gpusched.sampling.controlled.strategy import ControlledDecoding

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


def settings(g=2, **given):
    return ControlledDecoding(objectives=tuple(f"o{i}" for i in range(g)), **given)


def test_value_head_learns_the_exact_values():
    from gpusched.sampling.controlled.value_head import ValueHead, train_value_head

    rng = np.random.default_rng(0)
    model = MarkovModel(rng.dirichlet(np.full(6, 0.5), 6), rng.normal(size=(2, 6)))
    length, n = 8, 4000
    paths = model.sample(np.zeros(n, np.int64), length, rng)
    rewards = torch.as_tensor(model.earned(paths), dtype=torch.float32)
    tokens = torch.as_tensor(paths)

    def encoder(x):
        """What a causal model may know: last token, position, rewards so far."""
        one_hot = torch.nn.functional.one_hot(x, 6).float()
        time = torch.eye(length).expand(len(x), -1, -1)
        return torch.cat([one_hot.cumsum(1), one_hot, time], -1)

    torch.manual_seed(0)
    head = ValueHead(6 + 6 + length, 2)
    fit = train_value_head(encoder, head, tokens, torch.ones_like(tokens), rewards, epochs=12)
    assert min(fit.r2) > 0.4
    fresh = model.sample(np.zeros(500, np.int64), length, rng)
    with torch.no_grad():
        learnt = head(encoder(torch.as_tensor(fresh))).numpy()
    to_go = model.values(length)
    so_far = model.reward.T[fresh].cumsum(1)
    exact = so_far + np.stack([to_go[length - 1 - t][fresh[:, t]] for t in range(length)], 1)
    for g in range(2):
        error = ((learnt[..., g] - exact[..., g]) ** 2).mean() / exact[..., g].var()
        assert 1 - error > 0.95


def test_value_head_refuses_bad_input():
    from gpusched.sampling.controlled.value_head import ValueHead, train_value_head

    tokens = torch.zeros(10, 3, dtype=torch.long)
    head = ValueHead(3, 1)

    def train(mask=None, rewards=None, n=10):
        mask = torch.ones_like(tokens) if mask is None else mask
        rewards = torch.zeros(10, 1) if rewards is None else rewards
        train_value_head(
            lambda x: x.float()[..., None].expand(-1, -1, 3),
            head,
            tokens[:n],
            mask[:n],
            rewards[:n],
        )

    with pytest.raises(InputError, match="tokens, mask, rewards"):
        train(mask=torch.ones(10, 4))
    with pytest.raises(InputError, match="rewards: must be finite"):
        train(rewards=torch.full((10, 1), float("nan")))
    with pytest.raises(InputError, match="too few"):
        train(n=2)


# ---- transformers


@pytest.fixture(scope="module")
def tiny():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def counts(first, second):
    def values(sequences, lengths, finished):
        keep = torch.arange(sequences.shape[1]) < lengths[:, None]
        return torch.stack([((sequences == t) & keep).sum(1) for t in (first, second)], 1)

    return values


def generate(tiny, values, chosen, rows=6, **given):
    from gpusched.sampling.controlled.generate import controlled_generate

    prompt = torch.tensor([[2, 5, 6], [0, 2, 7]] * (rows // 2))
    options = {"do_sample": True, "max_new_tokens": 20, "temperature": 1.0, "top_k": 0} | given
    heard = []
    out = tiny.generate(
        prompt, attention_mask=(prompt != 0).long(),
        custom_generate=controlled_generate(values, chosen, on_block=heard.append), **options,
    )  # fmt: skip
    return prompt, out, heard


def test_loop_in_transformers(tiny):
    values = counts(10, 11)
    worst = {}
    for name, given in (
        ("reference", {"candidates": 1}), ("single", {"rule": "fixed", "weights": {"o0": 1.0}}), ("robust", {}),
    ):  # fmt: skip
        chosen = settings(**({"candidates": 16, "block_tokens": 4} | given))
        prompt, out, heard = generate(tiny, values, chosen, rows=24)
        assert (out[:, :3] == prompt).all()
        assert out.shape[1] <= 23
        assert len(heard) <= 5
        assert heard[0].shape == (24, 2)
        new = values(out, torch.full((len(out),), out.shape[1]), None).float()
        worst[name] = float(new.min(1).values.mean())
        # nothing but padding after the end
        for row in out[:, 3:]:
            ends = (row == 1).nonzero()
            assert not len(ends) or (row[ends[0, 0] + 1 :] == 0).all()
    assert worst["robust"] > worst["reference"]
    assert worst["robust"] > worst["single"]


def test_loop_is_repeatable_and_its_cache_changes_nothing(tiny):
    """Sampling nearly greedily, one candidate equals transformers' own greedy search."""
    chosen = settings(candidates=1, block_tokens=4)
    _, out, _ = generate(tiny, counts(10, 11), chosen, temperature=1e-6)
    prompt = torch.tensor([[2, 5, 6], [0, 2, 7]] * 3)
    greedy = tiny.generate(
        prompt, attention_mask=(prompt != 0).long(), do_sample=False, max_new_tokens=20
    )
    assert (out == greedy[:, : out.shape[1]]).all()
    again = [generate(tiny, counts(10, 11), settings(block_tokens=4))[1] for _ in range(2)]
    assert (again[0] == again[1]).all()


def test_branches_go_on_from_the_branch_kept(tiny):
    """The cache follows the choice: kept sequences are as likely as if computed afresh."""
    chosen = settings(candidates=4, block_tokens=3)
    _, out, _ = generate(tiny, counts(10, 11), chosen, temperature=1e-6)
    prompt = torch.tensor([[2, 5, 6], [0, 2, 7]] * 3)
    greedy = tiny.generate(
        prompt, attention_mask=(prompt != 0).long(), do_sample=False, max_new_tokens=20
    )
    assert (out == greedy[:, : out.shape[1]]).all()


def test_loop_refuses_bad_input(tiny):
    with pytest.raises(InputError, match="do_sample"):
        generate(tiny, counts(1, 2), settings(), do_sample=False, temperature=None, top_k=None)
    with pytest.raises(InputError, match="values: must have shape"):
        generate(tiny, lambda s, n, f: torch.zeros(len(s), 3), settings())
    with pytest.raises(InputError, match="must be finite"):
        generate(tiny, lambda s, n, f: torch.full((len(s), 2), float("nan")), settings())
