"""Parts of the rerun of MC-SF's experiments; the whole takes minutes."""

import numpy as np
import pytest

from gpusched.reproduce import mc_sf
from gpusched.reproduce.claim import Setting


def test_trials_follow_the_arrival_models():
    for seed in range(20):
        budget, a, s, o = mc_sf.instance(1, seed)
        assert 30 <= budget <= 50
        assert 40 <= len(a) <= 60
        assert (a == 0).all()
        assert 1 <= s.min() <= s.max() <= 5
        assert (o >= 1).all()
        assert (s + o <= budget).all()
        arrivals = mc_sf.instance(2, seed)[1]
        assert (np.diff(arrivals) >= 0).all()
        assert arrivals[-1] < 60


def test_small_trials_are_solved_and_large_ones_enclosed():
    small = mc_sf.trial(0, 1)
    assert small.proven
    assert small.mc_sf >= small.best
    large = mc_sf.trial(2, 1)
    assert large.bound <= large.best <= large.mc_sf < large.first_come
    assert large == mc_sf.trial(2, 1)


def test_lengths_have_the_printed_moments():
    trace = mc_sf.requests(50.0, 0)
    assert np.median(trace.prompt_tokens) == pytest.approx(11, abs=1)
    assert np.median(trace.output_tokens) == pytest.approx(45, abs=2)
    assert trace.prompt_tokens.mean() == pytest.approx(40.62, rel=0.1)
    assert trace.output_tokens.mean() == pytest.approx(85.32, rel=0.05)


def test_ratios_are_judged_by_what_is_known():
    trials = {
        0: [mc_sf.Trial(8, 105, 150, 100, 100.0)],
        1: [mc_sf.Trial(50, 1050, 1500, 1000, 900.0)],
        2: [mc_sf.Trial(50, 1020, 1500, 1000, 900.0)],
    }
    mean, worst, mean_arriving, _, hits, behind = mc_sf._ratios(trials)
    assert mean.ours == "1.050 to 1.167"
    assert mean.holds is False
    assert worst.holds is True
    assert mean_arriving.holds is True
    assert hits.holds is False
    assert behind.ours == "1.43"
    assert behind.holds is True


def test_a_short_rerun_judges_every_claim(monkeypatch):
    for name, value in (
        ("TRIALS", 2), ("SMALL_TRIALS", 1), ("MOVES", 200), ("SIZES", (200, 400)), ("LARGEST", 400),
        ("MARGINS", (0.0, 0.3)), ("REPORTED", 300), ("MARGIN_REQUESTS", 300),
    ):  # fmt: skip
        monkeypatch.setattr(mc_sf, name, value)
    messages = []
    found = mc_sf.run(Setting(seed=2, jobs=1, progress=messages.append))
    assert len(found.claims) == 11
    assert all(claim.ours for claim in found.claims)
    assert {"mc-sf-ratio", "mc-sf-latency"} == set(found.charts)
    assert messages
