"""Regressions on the released answer counts; parts that take seconds."""

import numpy as np
import pytest

from gpusched.reproduce import best_of_infinity as paper
from gpusched.reproduce.claim import Setting
from gpusched.sampling.ensemble import limit_correct, sweep_pair
from gpusched.sampling.weights import ensemble_weights


@pytest.fixture(scope="module")
def data(shared):
    found = paper.released(Setting(traces=shared / "traces"))
    assert found is not None
    return found


def test_pairs_on_released_counts(data):
    for other in (paper.NEMOTRON, paper.PHI, "Qwen3-30B-A3B-Thinking-2507"):
        prompts = data.rates("aime2025", [paper.OSS, other])
        found = ensemble_weights(prompts)
        count, _, margin = sweep_pair(prompts)
        assert found.correct == count == 27
        assert found.margin == pytest.approx(margin, abs=1e-5)


def test_gpqa_ensemble(data):
    prompts = data.rates("gpqa_diamond", list(paper.GPQA_WEIGHTS))
    assert len(prompts) == 198
    found = ensemble_weights(prompts, widest=False)
    assert (found.correct, found.proven) == (153, True)
    assert max(limit_correct(prompts, corner) for corner in np.eye(5)) == 145
    margin = (0.0, 0.2929, 0.6617, 0.0454, 0.0)
    assert limit_correct(prompts, margin) == 153


def test_one_sample_and_the_limit(data):
    first, second = paper.limit_claims(data)
    assert first.holds
    assert second.holds


def test_stand_in_without_data():
    assert paper.released(Setting()) is None
    log = paper.generated(0, prompts=50)
    assert len(log) == 50
    assert all(prompt.counts.sum() == 100 for prompt in log)
