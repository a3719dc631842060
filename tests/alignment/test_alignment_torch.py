"""Tensors, gradients, and the hooks in a torch loop and in TRL; skipped where torch is absent."""

import numpy as np
import pytest

from gpusched.alignment.combine import MODES, combine
from gpusched.alignment.normalise import group_advantages
from gpusched.errors import InputError

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


def test_tensors_equal_arrays():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 5, 2))
    given = {
        "tchebycheff": {"levels": [0, 1.0], "ideal": [1.0, 1.0]}, "lagrangian": {"multipliers": [1.0]},
        "mgda": {"gram": np.eye(2)}, "mgda_ub": {"gram": np.eye(2)}, "gapo": {"gram": np.eye(2)},
    }  # fmt: skip
    for mode in MODES:
        one = combine(a, mode=mode, **given.get(mode, {}))
        other = combine(torch.as_tensor(a), mode=mode, **given.get(mode, {}))
        assert other.advantages.dtype == torch.float64
        assert other.advantages.numpy() == pytest.approx(one.advantages)
    for kind in (torch.float32, torch.bfloat16):
        assert combine(torch.as_tensor(a).to(kind)).advantages.dtype == kind
    attached = torch.as_tensor(a).requires_grad_()
    assert not combine(attached).advantages.requires_grad
    r = rng.normal(size=(6, 2))
    assert group_advantages(torch.as_tensor(r), 3).numpy() == pytest.approx(group_advantages(r, 3))


def test_gradient_gram():
    from gpusched.alignment.gradients import gradient_gram

    w = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.zeros(3, requires_grad=True)
    gram = gradient_gram([(w * torch.tensor([1.0, 0.0])).sum(), w[1] ** 2], [w, unused])
    assert gram == pytest.approx(np.diag([1.0, 16.0]))


def bandit_step(logits, arms, rewards, mode, **options):
    from gpusched.alignment.policy_gradient import policy_gradient_step

    optimiser = torch.optim.SGD([logits], lr=0.5)
    hidden = []

    def log_probabilities():
        hidden[:] = [logits * 1.0]
        return hidden[0].log_softmax(-1)[arms][:, None]

    return policy_gradient_step(
        log_probabilities, optimiser, rewards, torch.ones(len(arms), 1), len(arms), mode=mode,
        activations=lambda: hidden, **options,
    )  # fmt: skip


def test_single_objective_step_is_plain_policy_gradient():
    arms = torch.tensor([0, 1, 2, 2])
    rewards = torch.tensor([[1.0], [0.0], [0.5], [2.0]])
    ours = torch.zeros(3, requires_grad=True)
    bandit_step(ours, arms, rewards, "token", noon=False)
    plain = torch.zeros(3, requires_grad=True)
    advantages = (rewards[:, 0] - rewards.mean()) / rewards.std()
    loss = -(plain.log_softmax(-1)[arms] * advantages).mean()
    loss.backward()
    assert ours.detach().numpy() == pytest.approx(-0.5 * plain.grad.numpy(), abs=1e-6)


@pytest.mark.parametrize(
    "mode", ["token", "batch_qp", "linear", "mgda", "mgda_ub", "gapo", "softmin"]
)
def test_steps_reach_the_knee(mode):
    torch.manual_seed(0)
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.8]])
    logits = torch.zeros(3, requires_grad=True)
    for _ in range(150):
        arms = torch.multinomial(logits.detach().softmax(-1), 64, replacement=True)
        found = bandit_step(logits, arms, table[arms], mode)
        assert found.weights.sum() == pytest.approx(1.0)
    assert (logits.detach().softmax(-1) @ table).min() > 0.75


def test_clipping_stops_the_ratio():
    arms = torch.tensor([0, 1])
    rewards = torch.tensor([[1.0], [0.0]])
    for noon, gains in ((True, (1.2, 1.6)), (False, (1.2, 1.9))):
        logits = torch.zeros(2, requires_grad=True)
        bandit_step(logits, arms, rewards, "token", noon=noon, epochs=200)
        assert gains[0] <= float(logits.detach().softmax(-1)[0]) / 0.5 <= gains[1]


def test_bad_steps():
    logits = torch.zeros(2, requires_grad=True)
    arms = torch.tensor([0, 1, 0])
    with pytest.raises(InputError, match="rewards: must have shape"):
        bandit_step(logits, arms, torch.ones(3), "token")
    with pytest.raises(InputError, match="mask: must have shape"):
        bandit_step(logits, arms, torch.ones(2, 2), "token")


# ---- TRL


def test_grpo_trainer(tmp_path):
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig

    from gpusched.alignment.grpo_trainer import ParetoGRPOTrainer

    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(30))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    data = datasets.Dataset.from_dict({"prompt": [f"w{i % 30} w{(i + 3) % 30}" for i in range(16)]})

    def many(completions, **_):
        return [float(sum(w in ("w3", "w5", "w7") for w in c.split())) for c in completions]

    def short(completions, **_):
        return [None if "w9" in c else -float(len(c.split())) for c in completions]

    def trainer(mode):
        arguments = GRPOConfig(
            output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=8, num_generations=4,
            max_completion_length=8, learning_rate=1e-3, report_to=[], use_cpu=True, save_strategy="no",
            logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        return ParetoGRPOTrainer(
            model=LlamaForCausalLM(config), reward_funcs=[many, short], args=arguments, mode=mode,
            train_dataset=data, processing_class=tokenizer,
        )  # fmt: skip

    for mode in ("token", "batch_qp"):
        run = trainer(mode)
        before = [p.detach().clone() for p in run.model.parameters()]
        run.train()
        assert any(
            not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True)
        )
        found = run.last_combined
        assert len(found.advantages) == 8
        assert found.weights.sum() == pytest.approx(1.0)
        if mode == "token":
            assert (found.advantages >= 0).all()
            expected = combine(group_advantages(run._objectives, 4), normalise=False).advantages
            assert torch.equal(found.advantages, expected)
        logged = {key for entry in run.state.log_history for key in entry}
        assert {"pareto/weight/many", "pareto/binding/short", "pareto/stalled"} <= logged
    for mode, needed in (("mgda", "needs gradients"), ("tokne", "did you mean token")):
        with pytest.raises(InputError, match=needed):
            trainer(mode)
