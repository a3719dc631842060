"""Confidence: intervals, corrected p-values, interpolation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from gpusched.statistics import holm, last_at_least, mean_interval, p_value, pairwise


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        mean, half = mean_interval(rng.normal(1.0, 2.0, 6))
        hits += abs(mean - 1.0) <= half
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_holm_on_a_worked_instance():
    # 4 x 0.005, 3 x 0.01 raised to it, 2 x 0.03, then 0.04 raised to that.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(p):
    corrected = holm(p)
    assert (corrected >= np.array(p)).all()
    assert (corrected <= np.minimum(np.array(p) * len(p), 1.0) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(corrected[order]) >= 0).all()


def test_several_comparisons_raise_few_false_alarms():
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        samples = list(rng.normal(0.0, 1.0, (5, 6)))
        alarms += any(d.told_apart for d in pairwise(samples).values())
    assert alarms / 400 < 0.075


def test_p_values_are_those_of_the_paired_t_test():
    a, b = np.random.default_rng(2).normal(0, 1, (2, 7))
    assert p_value(a - b) == pytest.approx(ttest_rel(a, b).pvalue)
    assert p_value(np.zeros(4)) == 1.0
    assert p_value(np.ones(4)) == 0.0
    assert p_value(np.array([3.0])) == 1.0
    assert p_value(np.array([1.0, np.nan])) == 1.0


def test_pairs_are_antisymmetric():
    samples = list(np.random.default_rng(3).normal(0, 1, (3, 5)))
    found = pairwise(samples)
    assert len(found) == 6
    for (i, j), difference in found.items():
        assert difference.mean == pytest.approx((samples[i] - samples[j]).mean())
        assert found[j, i].mean == -difference.mean
        assert found[j, i].p == difference.p


def test_the_last_load_is_interpolated():
    x = np.array([1.0, 2.0, 3.0])
    assert last_at_least(x, np.array([1.0, 0.9, 0.5]), 0.7) == pytest.approx(2.5)
    assert last_at_least(x, np.array([1.0, 0.4, 0.9]), 0.7) == pytest.approx(1.5)
    assert last_at_least(x, np.array([1.0, 0.9, 0.7]), 0.7) == np.inf
    assert last_at_least(x, np.array([0.6, 0.9, 0.9]), 0.7) == -np.inf
