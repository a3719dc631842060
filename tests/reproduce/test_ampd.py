"""The rerun of AMPD: verdicts follow from the figures, and one case end to end."""

import os

import numpy as np
import pytest

from gpusched.reproduce import ampd
from gpusched.reproduce.registry import paper


def outcomes(better):
    """Six cases in which every step gains by the given factor."""
    attained = np.empty((len(ampd.SYSTEMS), len(ampd.LOADS)))
    attained[ampd.AMPD] = 0.9
    attained[ampd.UNORDERED] = 0.9 / (1 + better / 4)
    attained[ampd.STATIC :] = 0.9 / (1 + better)
    return np.array([attained] * 6)


def test_registered():
    assert paper("ampd").arxiv == "2602.14516"


def test_gains_are_relative_and_bounded():
    gain = ampd.relative_gain(np.array([0.9, 0.5, 0.5]), np.array([0.6, 0.5, 0.0]))
    assert gain == pytest.approx([0.5, 0.0, 49.0])


@pytest.mark.parametrize(("better", "holds"), [(4.0, True), (0.0, False)])
def test_verdicts_follow_from_the_figures(better, holds):
    attained = outcomes(better)
    claims = [*ampd._comparisons(attained), *ampd._ablations(attained)]
    assert [c.holds for c in claims] == [holds, holds, None, holds, holds]


@pytest.mark.parametrize(("share", "holds"), [(0.2, True), (0.6, False), (0.0, False)])
def test_locality_is_judged_by_the_published_range(share, holds):
    cases = [ampd.Case("m", "p", 0)] * 2
    assert ampd._locality(cases, np.full((2, len(ampd.LOADS)), share)).holds is holds


@pytest.mark.slow
def test_one_case_end_to_end(monkeypatch):
    if os.environ.get("GPUSCHED_FULL") != "1":
        monkeypatch.setitem(ampd.PROFILES, "rag", 20.0)
        monkeypatch.setattr(ampd, "SHORTLIST", 4)
    outcome = ampd.run_case(ampd.Case("qwen3-32b", "rag", 0))
    assert outcome.attained.shape == (len(ampd.SYSTEMS), len(ampd.LOADS))
    assert ((outcome.attained >= 0) & (outcome.attained <= 1)).all()
    assert ((outcome.local >= 0) & (outcome.local <= 1)).all()
    assert outcome.attained[ampd.AMPD, 0] >= outcome.attained[ampd.AMPD, -1]
    best, proportional, _ = outcome.by_program
    assert best >= proportional
