"""Placing decodes: the fence, the lexicographic rule, virtual updates, and fall-backs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.policies.routing.placement import FACTOR, fence, place, sort_units

ROOM = 1e9


class Units:
    def __init__(self, batch, kv, free=None, order=None):
        self.batch = np.array(batch, np.float64)
        self.kv = np.array(kv, np.float64)
        self.free = np.full(len(batch), ROOM) if free is None else np.array(free, np.float64)
        self.ascending = np.arange(len(batch)) if order is None else np.array(order)

    def place(self, tokens, factor=FACTOR, slack=0, low=0, high=None):
        high = len(self.batch) if high is None else high
        return place(
            tokens, self.batch, self.kv, self.free, self.ascending, low, high, factor, slack
        )


def test_fence_of_the_worked_example():
    units = Units([0] * 6, [60, 10, 11, 12, 13, 14])
    sort_units(units.ascending, units.kv, 0, 6)
    assert units.kv[units.ascending].tolist() == [10, 11, 12, 13, 14, 60]
    limit = fence(1, units.kv, units.free, units.ascending, 6, 0, 6, FACTOR)
    assert limit == pytest.approx(17.5)


def test_an_outlier_is_left_out_however_small_its_batch():
    kv = [10, 11, 12, 13, 14, 60]
    assert Units([5, 5, 5, 5, 5, 0], kv).place(1) == 0
    assert Units([5, 5, 5, 5, 5, 0], kv).place(1, factor=50.0) == 5


def test_equal_loads_mask_nothing():
    assert Units([3, 3, 2, 3, 3], [0.1] * 5).place(1) == 2


def test_three_candidates_are_never_masked():
    assert Units([4, 4, 3], [1, 1, 10**6]).place(1) == 2
    assert Units([4, 4, 3, 9], [1, 1, 10**6, 1], free=[9, 9, 9, 0]).place(1) == 2


def test_fewest_requests_then_least_kv():
    units = Units([4, 4, 3], [100, 90, 500])
    assert units.place(1) == 2
    units = Units([4, 4, 3, 9, 9], [100, 90, 50_000, 100, 95])
    assert units.place(1) == 1


def test_virtual_updates_of_the_worked_example():
    units = Units([0, 0], [0, 0])
    assert [units.place(n) for n in (100, 90, 20, 10)] == [0, 1, 1, 0]
    assert units.batch.tolist() == [2, 2]
    assert units.kv.tolist() == [110, 110]
    assert units.free.tolist() == [ROOM - 110, ROOM - 110]


def test_slack_lets_kv_decide_between_nearly_equal_batches():
    batch, kv = [4, 5, 6], [300, 200, 100]
    assert [Units(batch, kv).place(1, slack=s) for s in (0, 1, 2)] == [0, 1, 2]


def test_without_room_or_knowledge_another_policy_decides():
    units = Units([0, 0], [5, 5], free=[9, 9])
    assert units.place(10) == -1
    assert units.batch.tolist() == [0, 0]
    assert Units([0, 0], [np.nan, np.nan]).place(1) == -1
    assert Units([0, 7], [np.nan, 5]).place(1) == 1


def test_only_the_units_asked_for_are_used():
    units = Units([0, 9, 8, 0], [0, 1, 1, 0])
    assert units.place(1, low=1, high=3) == 2


loads = st.integers(0, 5000).map(float)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.one_of(loads, st.just(float("nan"))), st.integers(0, 3000)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 3000),
    st.randoms(),
)
def test_agrees_with_the_rule_written_out(state, tokens, random):
    batch, kv, free = (np.array(column, np.float64) for column in zip(*state, strict=True))
    order = list(range(len(state)))
    random.shuffle(order)
    units = Units(batch, kv, free, order)
    candidates = [u for u in range(len(state)) if free[u] >= tokens and not np.isnan(kv[u])]
    safe = candidates
    if len(candidates) >= 4:
        q1, q3 = np.percentile(kv[candidates], [25, 75])
        safe = [u for u in candidates if kv[u] <= q3 + 1.5 * (q3 - q1) + 1e-9]
    expected = min(safe, key=lambda u: (batch[u], kv[u], u), default=-1)
    assert units.place(tokens) == expected
    assert sorted(units.ascending) == list(range(len(state)))
