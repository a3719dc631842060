"""The rerun of the Safety Game on fewer prompts; the toy language."""

import numpy as np
import pytest

from gpusched.reproduce import safety_game as paper
from gpusched.reproduce.toy_language import noisy, scored_candidates


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(paper, "PROMPTS", 800)
    return paper.Bench(0)


def test_claims(bench):
    holds = [c.holds for c in (*paper.safety(bench), *paper.exactness(bench, sample=60))]
    assert holds == [True] * 4
    same_guarantee, same_mean = paper.against_filters(bench)
    assert same_guarantee.holds
    assert not same_mean.holds
    assert paper.judges(bench, 0).holds


def test_toy_language():
    h, r = scored_candidates(200, 5, 3)
    again, _ = scored_candidates(200, 5, 3)
    assert (h == again).all()
    assert h.min() >= 0
    assert max(h.max(), r.max()) <= 1
    assert np.corrcoef(h[:, 1:].ravel(), r[:, 1:].ravel())[0, 1] > 0.1
    seen = noisy(h, 0.05, np.random.default_rng(0))
    assert np.abs(seen - h).max() <= 0.05
