"""Thresholds of WAIT and Nested WAIT: worked instances, conditions, and roots by brute force."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.policies.batching.equilibrium import (
    AffineTime,
    RequestTypes,
    equilibrium,
    grouped_types,
    types_of,
)
from gpusched.policies.batching.thresholds import (
    ENDLESS,
    check_nested,
    check_wait,
    drift_bound,
    drift_exponent,
    most_residents,
    nested_thresholds,
    overflow_buffer_tokens,
    segment_ends,
    segment_memory_tokens,
    survival_into,
    thresholds_for_total,
    wait_thresholds,
)

TIME = AffineTime(0.02, 1e-6)
NESTED = np.array([3.0, 1.0])
SURVIVAL = np.array([1.0, 0.2])
ENDS = np.array([10, 40])


def two_types(scale=1.0):
    return RequestTypes.of([20 * scale, 5 * scale], 100, [10, 40])


def test_whole_thresholds_at_low_load():
    found = wait_thresholds(two_types(), TIME, 1e5, slack=0.1, shrink=False, whole=True)
    assert found.per_stage.tolist() == [1, 1]
    assert found.memory_tokens == 6075
    assert found.iteration_s == pytest.approx(26.075e-3)
    assert found.ends.tolist() == [11, ENDLESS]
    assert found.hold_s == pytest.approx(2 * 26.075e-3)


def test_whole_thresholds_near_the_critical_load():
    found = wait_thresholds(two_types(20), TIME, 1e6, slack=0.02, shrink=False, whole=True)
    assert found.per_stage.tolist() == [304, 76]
    assert found.memory_tokens == 725_040
    assert found.iteration_s == pytest.approx(745.04e-3)
    needed = wait_thresholds(two_types(20), TIME, 1e6, slack=0.02)
    assert needed.memory_tokens < 1.1 * 414_783


def test_slack_that_does_not_fit_falls_back_to_the_equilibrium():
    balance = equilibrium(two_types(20), TIME, 5e5)
    found = wait_thresholds(two_types(20), TIME, 5e5, slack=0.5, shrink=False)
    assert found.per_stage == pytest.approx(balance.per_stage)
    with pytest.raises(InfeasibleError, match="whole thresholds need"):
        wait_thresholds(two_types(20), TIME, 415_000, slack=0.5, whole=True)


def test_an_unstable_load_is_told():
    with pytest.raises(InfeasibleError, match=r"are unstable on one engine.*are stable"):
        wait_thresholds(two_types(21), TIME, 1e9)
    with pytest.raises(InfeasibleError, match=r"are unstable on one engine.*are stable"):
        nested_thresholds(two_types(21), np.array([10.0, 40.0]), ENDS, TIME, 1e9)


@given(
    st.lists(st.tuples(st.floats(0.1, 20), st.integers(1, 200), st.integers(0, 80)), min_size=1,
             max_size=4),
    st.floats(0.1, 0.9), st.floats(0.0, 0.5), st.booleans(),
)  # fmt: skip
def test_thresholds_meet_the_conditions(load, share, slack, whole):
    rate, prompt, steps = (np.array(x, float) for x in zip(*load, strict=True))
    types = RequestTypes.of(rate, prompt, steps)
    types = types.scale_rate(share / equilibrium(types, TIME).load)
    found = wait_thresholds(types, TIME, 1e9, slack=slack, whole=whole)
    assert check_wait(types, TIME, 1e9, found.per_stage) == []
    assert found.memory_tokens >= equilibrium(types, TIME).memory_tokens * (1 - 1e-9)
    assert (found.starts >= 1).all()
    assert check_wait(types, TIME, 1e9, 0.99 * equilibrium(types, TIME).per_stage) != []


def test_violated_conditions_are_named():
    assert check_wait(two_types(20), TIME, 1e6, np.array([304.0, 76.0])) == []
    wrong = check_wait(two_types(20), TIME, 7e5, np.array([290.0, 76.0]))
    assert len(wrong) == 2
    assert "type 0: 291.548 arrive in an iteration, above its threshold 290" in wrong[0]
    assert "exceed the capacity of 700,000" in wrong[1]


def test_memory_and_iteration_of_segments():
    assert segment_memory_tokens(NESTED, 100, ENDS) == 7230
    assert TIME.fixed_s + TIME.token_s * 7230 == pytest.approx(27.23e-3)
    assert check_nested(NESTED, SURVIVAL, 25.0, 100, ENDS, TIME, 8000) == []


@given(st.lists(st.tuples(st.floats(0.1, 9), st.integers(1, 20)), min_size=1, max_size=5),
       st.integers(1, 50))  # fmt: skip
def test_memory_of_segments_equals_a_loop(rows, prompt):
    n, widths = (np.array(x) for x in zip(*rows, strict=True))
    ends = np.cumsum(widths)
    total = n[0] * prompt
    for stage in range(1, ends[-1] + 1):
        total += n[np.searchsorted(ends, stage)] * (prompt + stage)
    assert segment_memory_tokens(n, prompt, ends) == pytest.approx(total)


@pytest.mark.parametrize(
    ("n", "rate", "kv", "words"),
    [
        ([3, 0.5], 25, 8000, "segment 1: threshold 0.5 is 0.166667"),
        ([3, 3], 25, 1e5, "segment 1: threshold 3 is 1 of the one before"),
        ([3, 1], 200, 8000, "segment 0: 5.446 arrive"),
        ([3, 1], 25, 7000, "exceed the capacity of 7,000"),
    ],
)
def test_violated_conditions_of_segments_are_named(n, rate, kv, words):
    wrong = check_nested(np.array(n, float), SURVIVAL, rate, 100, ENDS, TIME, kv)
    assert len(wrong) == 1
    assert words in wrong[0]


@pytest.mark.parametrize(
    ("before", "n", "survival", "theta", "bound"),
    [
        (3, 1, 0.2, 1.33704, 1.06667),
        (10, 4, 0.3, 0.871061, 0.8),
        (10, 3.5, 0.3, 0.451427, 0.4),
        (100, 40, 0.3, 0.871061, 0.8),
    ],
)
def test_drift_exponents(before, n, survival, theta, bound):
    assert drift_exponent(before, n, survival) == pytest.approx(theta, abs=1e-5)
    assert drift_bound(before, n, survival) == pytest.approx(bound, abs=1e-5)


@given(st.floats(0.5, 100), st.floats(0.01, 0.98), st.floats(0.02, 0.98))
def test_drift_exponent_is_the_root_above_its_bound(before, survival, place):
    n = before * (survival + place * (1 - survival))
    assume(survival * before < n * (1 - 1e-6) and n < before * (1 - 1e-6))
    theta = drift_exponent(before, n, survival)
    assert theta >= drift_bound(before, n, survival) * (1 - 1e-9)
    left = before * math.log1p(survival * math.expm1(theta))
    assert left == pytest.approx(theta * n, rel=1e-6)


def test_queues_that_do_not_build_up_or_do_not_drain():
    assert math.isinf(drift_exponent(3, 3, 0.2))
    assert math.isinf(drift_exponent(3, 1, 0.0))
    with pytest.raises(InputError, match="does not drain"):
        drift_exponent(10, 3, 0.3)


def test_safety_buffer():
    def buffer(horizon_s):
        return overflow_buffer_tokens(
            NESTED, SURVIVAL, 100, ENDS, horizon_s=horizon_s, fixed_s=0.02, failure=0.01
        )

    assert buffer(3600) == pytest.approx(1541.4, abs=0.1)
    assert segment_memory_tokens(NESTED, 100, ENDS) + buffer(3600) == pytest.approx(8772, abs=1)
    assert buffer(7200) - buffer(3600) == pytest.approx(110 * math.log(2) / 1.33704, abs=0.1)


def test_boundary_queues_overflow_no_more_often_than_the_buffer_allows():
    """The queue that (B16) bounds: some of three survive, one goes on, every iteration."""
    rng = np.random.default_rng(0)
    theta = drift_exponent(3, 1, 0.2)
    steps = rng.binomial(3, 0.2, 400_000) - 1
    queue, walk = 0, np.empty(len(steps))
    for i, step in enumerate(steps):
        queue = max(queue + step, 0)
        walk[i] = queue
    for level in (2, 4, 6):
        assert (walk >= level).mean() <= math.exp(-theta * level)


def test_thresholds_for_a_total():
    n = thresholds_for_total(30, np.array([1.0, 0.3]), np.array([20, 50]))
    assert n == pytest.approx([1.03448, 0.31034], abs=1e-5)
    caps = n * [20, 30]
    assert caps == pytest.approx([20.69, 9.31], abs=0.01)
    assert np.rint(caps).tolist() == [21, 9]


def test_survival_into_segments():
    steps = np.array([5.0, 10, 11, 25, 40, 40, 60, 90, 90, 100])
    assert survival_into(steps, [10, 40, 100]) == pytest.approx([1, 0.8, 0.5])
    weight = np.array([3.0, 0, 1, 0, 0, 0, 0, 0, 0, 1])
    assert survival_into(steps, [10, 40, 100], weight) == pytest.approx([1, 0.4, 0.5])
    assert survival_into(steps, [200, 300, 400]).tolist() == [1, 0, 0]


def test_segments_end_at_quantiles():
    steps = np.arange(1.0, 101)
    assert segment_ends(steps, 4).tolist() == [25, 50, 75, 100]
    assert segment_ends(np.full(9, 30.0), 4).tolist() == [30]
    assert segment_ends(np.zeros(3), 4).tolist() == [1]


def test_nested_thresholds_drain_and_take_in_what_arrives():
    rng = np.random.default_rng(2)
    prompt, output = rng.integers(10, 200, 3000), rng.geometric(0.01, 3000)
    steps = output - 1.0
    ends = segment_ends(steps, 5)
    found = nested_thresholds(types_of(prompt, output, 30.0), steps, ends, TIME, 1e6)
    survival = survival_into(steps, ends)
    assert found.per_stage[0] > 30.0 * found.iteration_s
    assert (found.per_stage[1:] > survival[1:] * found.per_stage[:-1]).all()
    assert (found.per_stage[1:] <= found.per_stage[:-1]).all()
    assert found.ends[-1] == ENDLESS


def test_one_segment_is_one_type():
    rng = np.random.default_rng(3)
    prompt, steps = rng.integers(10, 200, 300).astype(float), rng.integers(0, 90, 300).astype(float)
    everyone = np.zeros(300, np.int64)
    types = grouped_types(prompt, steps, everyone, np.array([9.0]), [89])
    wait = wait_thresholds(types, TIME, 1e6)
    nested = nested_thresholds(types, steps, np.array([89]), TIME, 1e6)
    assert nested.per_stage == pytest.approx(wait.per_stage)
    assert (nested.residents, nested.hold_s) == pytest.approx((wait.residents, wait.hold_s))


def test_residents_exceed_the_memory_one_per_cent_of_the_time():
    rng = np.random.default_rng(4)
    steps = rng.geometric(0.01, 20_000).astype(float)
    prompt = rng.integers(1, 400, len(steps)).astype(float)
    types = grouped_types(prompt, steps, np.zeros(len(steps), np.int64), np.ones(1), [1])
    count = most_residents(types, 30_000.0)
    alive = rng.choice(len(steps), (20_000, count), p=(steps + 1) / (steps + 1).sum())
    held = (prompt[alive] + np.floor(rng.random(alive.shape) * (steps[alive] + 1))).sum(axis=1)
    assert 0.003 < (held > 30_000).mean() < 0.02
