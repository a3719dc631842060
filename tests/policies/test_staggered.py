"""The release clock and the tiers of engine state."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.policies.admission.staggered import (
    active_engines,
    deadline_s,
    mean_pass_s,
    oldest_ready,
    ready_since_s,
    record_pass,
    release_interval_s,
    release_s,
    watch,
)


def test_interval_is_a_cycle_over_the_engines_in_use():
    assert release_interval_s(0.3, 0.02, 4, 0.002, 0.3) == pytest.approx(0.08)
    assert release_interval_s(0.3, 0.02, 2, 0.002, 0.3) == pytest.approx(0.16)
    assert release_interval_s(0.3, 0.02, 1, 0.002, 0.3) == 0.3
    assert release_interval_s(0.001, 0.0, 4, 0.002, 0.001) == 0.002
    assert release_interval_s(0.3, 0.02, 0, 0.002, 0.3) == math.inf


@given(st.lists(st.floats(0.01, 1.0), max_size=20), st.integers(1, 6))
def test_mean_is_of_the_latest_passes(durations, size):
    window = np.zeros((2, size))
    for i, duration in enumerate(durations):
        record_pass(window, 1, i, duration)
    expected = np.mean(durations[-size:]) if durations else 7.0
    assert mean_pass_s(window, 1, len(durations), 7.0) == pytest.approx(expected)
    assert (window[0] == 0).all()


def test_release_waits_for_the_interval_but_for_shortcuts():
    assert release_s(1.0, 0.1, 0.002, 10, 100, False, False) == 1.1
    for buffered, unloaded, goes_on in ((100, False, False), (10, True, False), (10, False, True)):
        assert release_s(1.0, 0.1, 0.002, buffered, 100, unloaded, goes_on) == 1.002
    assert release_s(1.0, 0.001, 0.002, 10, 100, False, False) == 1.002
    assert release_s(-math.inf, 0.1, 0.002, 10, 100, False, False) == -math.inf


def test_a_report_outranks_a_prediction():
    assert ready_since_s(2.0, True, 1.5, 9.0, False) == 1.5
    assert ready_since_s(2.0, False, 1.5, 1.8, False) == 1.8
    assert ready_since_s(2.0, False, 1.5, 2.1, False) == math.inf
    assert ready_since_s(2.0, True, 1.5, 1.8, True) == math.inf
    reported = np.array([False, True, True, True])
    reported_s = np.array([0.0, 1.0, 0.5, 0.1])
    predicted_s = np.array([0.2, 9.0, 9.0, 9.0])
    out = np.array([False, False, False, True])
    assert oldest_ready(2.0, reported, reported_s, predicted_s, out, 0, 4) == 2
    assert oldest_ready(2.0, reported, reported_s, predicted_s, out, 0, 1) == 0
    assert oldest_ready(0.1, reported, reported_s, predicted_s, out, 0, 1) == -1
    assert active_engines(out, 0, 4) == 3


def test_a_silent_engine_is_taken_out_once():
    assert deadline_s(1.0, 0.1, 0.3, 0.02, 3.0) == pytest.approx(1.96)
    assert deadline_s(1.0, 0.5, 0.3, 0.02, 3.0) == pytest.approx(2.56)
    deadlines = np.array([1.0, 3.0, math.inf])
    out = np.zeros(3, np.bool_)
    assert watch(0.9, deadlines, out, 0, 3) == 0
    assert watch(1.0, deadlines, out, 0, 3) == 1
    assert watch(1.0, deadlines, out, 0, 3) == 0
    assert out.tolist() == [True, False, False]
