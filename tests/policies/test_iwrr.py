"""Interleaved weighted round-robin and its baselines."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.routing import iwrr
from gpusched.policies.routing.pipelines import pipeline_routing

weights = st.lists(st.floats(0.1, 100), min_size=1, max_size=8)
works = st.lists(st.floats(1, 2000), min_size=1, max_size=60)


def open_all(weight):
    return np.ones(len(weight), np.bool_)


def test_order_of_the_worked_instance():
    """Weights 6, 3, 1 scaled so that work over weight is exact."""
    weight = np.array([6.0, 3.0, 1.0])
    load = np.zeros(3)
    picks = []
    for _ in range(10):
        edge = iwrr.least_load(weight, load, open_all(weight), 6.0, 0, 3)
        load[edge] += 6.0 / weight[edge]
        picks.append(edge)
    assert picks == [0, 0, 1, 0, 0, 1, 0, 0, 1, 2]


@given(weights, works)
def test_loads_stay_within_one_request(weight, work):
    weight = np.array(weight)
    load = np.zeros(len(weight))
    for amount in work:
        edge = iwrr.least_load(weight, load, open_all(weight), amount, 0, len(weight))
        load[edge] += amount / weight[edge]
        largest = max(work) / weight
        gaps = np.abs(load[:, None] - load[None, :])
        assert np.all(gaps <= np.maximum(largest[:, None], largest[None, :]) + 1e-9)


@given(weights, works)
def test_shares_follow_the_weights(weight, work):
    weight = np.array(weight)
    load, given_work = np.zeros(len(weight)), np.zeros(len(weight))
    for amount in work:
        edge = iwrr.least_load(weight, load, open_all(weight), amount, 0, len(weight))
        load[edge] += amount / weight[edge]
        given_work[edge] += amount
    fair = given_work.sum() * weight / weight.sum()
    slack = len(weight) * max(work) * max(1.0, weight.max() / weight.min())
    assert np.all(np.abs(given_work - fair) <= slack)


def test_closed_edges_take_nothing():
    weight, load = np.array([5.0, 1.0]), np.zeros(2)
    assert iwrr.least_load(weight, load, np.array([False, True]), 1.0, 0, 2) == 1
    assert iwrr.least_load(weight, load, np.array([False, False]), 1.0, 0, 2) == -1
    assert iwrr.least_priority(load, np.array([False, False]), 0, 2) == -1
    assert iwrr.any_open(np.array([False, False]), 0, 2, 1, 0) == -1


def test_little_flow_is_no_flow():
    assert iwrr.has_flow(5.0, 100.0)
    assert not iwrr.has_flow(4.999, 100.0)
    assert not iwrr.has_flow(0.0, 0.0)


@given(
    st.integers(1, 2048), st.floats(0, 2), st.integers(1, 12), st.floats(0.1, 1), st.floats(0, 1e6)
)
def test_kv_mask_leaves_the_high_water_mark_free(prompt, share, layers, mark, reserved):
    tokens = int(iwrr.expected_tokens(prompt, share, 240.0))
    assert prompt <= tokens <= prompt + share * 240
    fits = iwrr.kv_fits(reserved, 1e6, tokens, layers, mark)
    after = reserved + tokens * layers
    if fits:
        assert after <= mark * 1e6 * (1 + 1e-9)
    else:
        assert after > mark * 1e6 * (1 - 1e-9)


def test_loads_carry_over_to_new_weights():
    load = np.array([4.0, 2.0, 0.0, 7.0])
    old = np.array([1.0, 2.0, 0.0, 3.0])
    new = np.array([2.0, 1.0, 5.0, 0.0])
    np.testing.assert_allclose(iwrr.carried_loads(load, old, new), [2.0, 4.0, 4.0, 0.0])


@given(weights, works, st.floats(0.1, 10))
def test_scaling_all_weights_changes_no_decision(weight, work, factor):
    weight = np.array(weight)
    loads = [np.zeros(len(weight)), np.zeros(len(weight))]
    factor = 2.0 ** round(np.log2(factor))
    for amount in work:
        edges = []
        for scale, load in zip((1.0, factor), loads, strict=True):
            edge = iwrr.least_load(weight * scale, load, open_all(weight), amount, 0, len(weight))
            load[edge] += amount / (weight[edge] * scale)
            edges.append(edge)
        assert edges[0] == edges[1]


def test_swarm_prefers_the_faster_edge():
    priority, mean_s = np.full(2, 0.05), np.array([0.1, 0.3])
    counts = np.zeros(2)
    for _ in range(400):
        edge = iwrr.least_priority(priority, np.ones(2, np.bool_), 0, 2)
        priority[edge] += mean_s[edge]
        counts[edge] += 1
    assert counts[0] / counts[1] == pytest.approx(3.0, rel=0.02)
    assert iwrr.smoothed(1.0, 2.0, 0.8) == pytest.approx(1.8)


def test_random_and_shortest_queue_use_open_edges_evenly():
    open_ = np.array([True, False, True, True])
    picks = [iwrr.any_open(open_, 0, 4, 3, turn) for turn in range(3000)]
    assert set(picks) == {0, 2, 3}
    assert np.bincount(picks, minlength=4)[[0, 2, 3]] == pytest.approx(1000, abs=120)
    length = np.array([2.0, 0.0, 1.0, 1.0])
    picks = [iwrr.shortest(length, open_.copy(), 0, 4, 3, turn) for turn in range(200)]
    assert set(picks) == {2, 3}


def test_policies_by_name():
    assert pipeline_routing("iwrr+kv_high_water=0.85").kv_high_water == 0.85
    with pytest.raises(InputError, match=r"unknown pipeline routing policy 'iwr'.*iwrr"):
        pipeline_routing("iwr")
    with pytest.raises(InputError, match=r"kv_high_water must be a number from 0\.01 to 1"):
        pipeline_routing("iwrr+kv_high_water=2")
