"""Reruns of RMOD and PAMA, shortened."""

from importlib.util import find_spec

import numpy as np
import pytest

from gpusched.reproduce import pama, rmod
from gpusched.reproduce.claim import Setting
from gpusched.sampling.controlled.markov import decode


@pytest.fixture
def short(monkeypatch):
    for module, name, value in (
        (rmod, "SEEDS", 2), (rmod, "PROMPTS", 30), (rmod, "OBJECTIVES", (2, 5, 10)), (rmod, "BLOCKS", (8, 32)),
        (pama, "SEEDS", 2), (pama, "UPDATES", 30),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("module", [rmod, pama])
def test_without_torch(short, monkeypatch, module):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    found = module.run(Setting())
    told = [c for c in found.claims if c.holds is None]
    assert len(told) == 1
    assert "pip install 'gpusched[torch]'" in told[0].differences
    assert len(found.claims) >= 8
    assert all("svg" in chart for chart in found.charts.values())
    verdicts = {c.claim: c.holds for c in found.claims}
    if module is rmod:
        assert verdicts["weights are near uniform at strength 0.1 and concentrate at 10"] is False
    else:
        assert verdicts["it converges to Pareto-stationary points"] is False
        assert any(k.startswith("rewards of different scales") and v for k, v in verdicts.items())


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_with_torch(monkeypatch):
    from gpusched.reproduce import pama_transformers, rmod_transformers

    for module, name, value in (
        (rmod_transformers, "SEEDS", 2), (rmod_transformers, "ROLLOUTS", 200), (rmod_transformers, "PROMPTS", 10),
        (rmod_transformers, "TRAINING_STEPS", 20), (pama_transformers, "SEEDS", 2), (pama_transformers, "UPDATES", 3),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    monkeypatch.setitem(pama_transformers.MODES, "batch_scalar", "batch_scalar")
    for module, count in ((rmod_transformers, 3), (pama_transformers, 2)):
        heard = []
        claims = module.transformer_claims(Setting(progress=heard.append))
        assert len(claims) == count
        assert all(isinstance(c.holds, bool) for c in claims)
        assert heard


def test_chains_are_standardised_and_conflict():
    rng = np.random.default_rng(0)
    model = rmod.conflicting_chain(rng, 2, 16, 32)
    earned = model.earned(model.sample(rng.integers(16, size=4000), 32, rng))
    assert earned.mean(0) == pytest.approx([0, 0], abs=0.15)
    assert earned.std(0) == pytest.approx([1, 1], abs=0.1)
    tokens, weights = decode(model, rng.integers(16, size=5), 32, rmod.settings(2), rng)
    assert tokens.shape == (5, 32)
    assert weights.shape == (4, 5, 2)


def test_win_rate_and_hypervolume():
    r = np.array([[1.0, 0.0], [2.0, 5.0]])
    assert rmod.win_rate(r, np.array([[0.0, 0.0], [2.0, 6.0]])) == 25.0
    assert pama.hypervolume(np.array([0.5, 0.5]), np.array([0.25, 0.1])) == pytest.approx(0.1)
    assert pama.hypervolume(np.array([0.5, 0.0]), np.array([0.25, 0.1])) == 0.0


def test_rewards_and_their_gradient():
    texts = np.array([[0, 1, 0, 1, 0], [0, 1, 2, 3, 4], [5, 5, 5, 5, 5]])
    assert pama.rewards_of(texts) == pytest.approx(np.array([[1, 0.5], [0.4, 1], [0, 0]]))
    # the score-function gradient equals differences of the log-probability
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(pama.LENGTH, pama.TOKENS, pama.TOKENS))
    texts = rng.integers(pama.TOKENS, size=(1, pama.LENGTH))
    before = np.concatenate([[[3]], texts[:, :-1]], 1)

    def log_p(x):
        z = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return z[np.arange(pama.LENGTH), before[0], texts[0]].sum()

    e = np.exp(logits)
    found = pama._gradient(e / e.sum(-1, keepdims=True), before, texts, np.ones(1))
    for place in ((0, 3, 5), (0, 3, int(texts[0, 0])), (4, int(before[0, 4]), 2)):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        assert found[place] == pytest.approx(
            (log_p(logits + step) - log_p(logits - step)) / 2e-5, abs=1e-8
        )
