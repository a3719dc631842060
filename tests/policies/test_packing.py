"""Packing windows onto data-parallel units: worked examples, invariants, and the optimum."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.planning.packing import balanced_packing, longest_first_ratio, unit_loads
from gpusched.policies.routing.packing import NO_CAP, pack, room_tokens, sort_window


def packed(lengths, available, hits=None, ages=None, chunk=4096, spill=NO_CAP):
    n = len(lengths)
    lengths = np.array(lengths, np.int64)
    available = np.array(available, np.int64)
    hits = np.zeros((n, len(available)), np.int64) if hits is None else np.array(hits, np.int64)
    ages = np.zeros(n, np.int64) if ages is None else np.array(ages, np.int64)
    assigned = np.full(n, -9, np.int64)
    order = np.arange(n)
    sort_window(order, n, lengths, ages)
    oldest = pack(
        order, n, lengths, hits, available, assigned, ages, 0, len(available), chunk, spill
    )
    return assigned, available, ages, oldest


def test_worked_example_levels_whatever_the_order():
    for order in set(itertools.permutations((4000, 3000, 2000, 1000, 1000, 1000))):
        assigned, available, _, oldest = packed(order, [4096] * 3)
        assert available.tolist() == [96, 96, 96]
        loads = [sorted(np.array(order)[assigned == u]) for u in range(3)]
        assert sorted(loads) == [[1000, 1000, 2000], [1000, 3000], [4000]]
        assert oldest == 0


def test_requests_left_from_earlier_windows_come_first():
    assigned, available, ages, oldest = packed([4000, 100], [50], ages=[0, 1])
    assert assigned.tolist() == [-1, 0]
    assert available.tolist() == [-50]
    assert ages.tolist() == [1, 1]
    assert oldest == 1


def test_age_comes_before_length():
    order = np.arange(5)
    sort_window(order, 5, np.array([9, 5, 7, 7, 1]), np.array([0, 1, 1, 1, 3]))
    assert order.tolist() == [4, 2, 3, 1, 0]


def test_a_giant_prompt_overfills_one_unit_and_the_next_goes_elsewhere():
    assigned, available, _, _ = packed([100_000, 10, 10], [4096, 4096])
    assert assigned.tolist() == [0, 1, 1]
    assert available.tolist() == [4096 - 100_000, 4076]


def test_cache_hits_count():
    assigned, available, _, _ = packed([1000], [100, 100], hits=[[0, 950]])
    assert assigned.tolist() == [1]
    assert available.tolist() == [100, 50]
    whole, unchanged, _, _ = packed([1000], [100, 100], hits=[[0, 1000]])
    assert whole.tolist() == [1]
    assert unchanged.tolist() == [100, 100]
    full, _, ages, oldest = packed([1000], [100, 0], hits=[[0, 1000]])
    assert full.tolist() == [0]
    assert (ages.tolist(), oldest) == ([0], 0)


def test_spill_is_capped_unless_the_unit_is_empty():
    assigned, *_ = packed([1500], [1000], chunk=4096, spill=400)
    assert assigned.tolist() == [-1]
    assigned, *_ = packed([1500], [1000], chunk=4096, spill=500)
    assert assigned.tolist() == [0]
    assigned, *_ = packed([9000], [1000, 4096], chunk=4096, spill=0)
    assert assigned.tolist() == [1]


def test_identical_requests_are_level():
    assigned, available, _, _ = packed([100] * 32, [4096] * 8)
    assert np.bincount(assigned).tolist() == [4] * 8
    assert (available == 4096 - 400).all()


def test_only_the_units_asked_for_are_used():
    available = np.array([1000, 10, 20, 1000])
    assigned, ages = np.zeros(2, np.int64), np.zeros(2, np.int64)
    pack(
        np.arange(2), 2, np.array([5, 5]), np.zeros((2, 4), np.int64), available, assigned, ages,
        1, 3, 1000, NO_CAP,
    )  # fmt: skip
    assert assigned.tolist() == [2, 2]
    assert available.tolist() == [1000, 10, 10, 1000]
    assert room_tokens(np.array([1000, -10, 20, 1000]), 1, 3) == 20


@st.composite
def windows(draw, largest=12, most_units=5):
    units = draw(st.integers(1, most_units))
    n = draw(st.integers(0, largest))
    lengths = draw(st.lists(st.integers(0, 3000), min_size=n, max_size=n))
    hits = [draw(st.lists(st.integers(0, 2000), min_size=units, max_size=units)) for _ in lengths]
    available = draw(st.lists(st.integers(-500, 4096), min_size=units, max_size=units))
    ages = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return lengths, np.array(hits, np.int64).reshape(n, units), available, ages


@given(windows(), st.sampled_from([NO_CAP, 0, 500]))
def test_room_falls_by_what_is_assigned_and_nothing_else(window, spill):
    lengths, hits, available, ages = window
    assigned, left, new_ages, oldest = packed(lengths, available, hits, ages, 4096, spill)
    uncached = np.maximum(np.array(lengths, np.int64)[:, None] - hits, 0)
    taken = assigned >= 0
    spent = uncached[np.arange(len(lengths)), assigned][taken].sum()
    assert sum(available) - left.sum() == spent
    assert (assigned < len(available)).all()
    assert (new_ages == np.array(ages, np.int64) + ~taken).all()
    assert oldest == (new_ages[~taken].max() if (~taken).any() else 0)
    if (~taken).any() and spill == NO_CAP:
        assert (left <= 0).all()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=25)
def test_without_hits_within_the_bound_of_longest_first(lengths, units):
    assigned, available, _, _ = packed(lengths, [10**6] * units, chunk=10**6)
    best = balanced_packing(lengths, np.zeros((len(lengths), units), int), np.zeros(units, int))
    assert best.proven
    assert best.makespan == brute_force(
        np.repeat(np.array(lengths)[:, None], units, 1), [0] * units
    )
    busiest = 10**6 - available.min()
    assert best.makespan <= busiest <= longest_first_ratio(units) * best.makespan + 1e-9
    assert (assigned >= 0).all()


@given(windows(largest=5, most_units=3))
@settings(max_examples=25)
def test_program_is_optimal_with_hits_and_queues(window):
    lengths, hits, available, _ = window
    queued = [max(a, 0) for a in available]
    best = balanced_packing(lengths, hits, queued)
    uncached = np.maximum(np.array(lengths, np.int64)[:, None] - hits, 0)
    assert best.proven
    assert best.makespan == brute_force(uncached, queued)
    assert (unit_loads(uncached, np.array(queued, np.int64), best.unit) == best.loads).all()
    chunk = 10**6
    _, left, _, _ = packed(lengths, [chunk - q for q in queued], hits, chunk=chunk)
    assert chunk - left.min() >= best.makespan


def brute_force(uncached, queued):
    units = len(queued)
    choices = itertools.product(range(units), repeat=len(uncached))
    return min(
        max(
            queued[u]
            + sum(row[u] for row, chosen in zip(uncached, choice, strict=True) if chosen == u)
            for u in range(units)
        )
        for choice in choices
    )


def test_worst_case_of_longest_first():
    """Graham's instance attains the bound."""
    lengths = [5, 5, 4, 4, 3, 3, 3]
    _, available, _, _ = packed(lengths, [100] * 3, chunk=100)
    best = balanced_packing(lengths, np.zeros((7, 3), int), np.zeros(3, int))
    assert (100 - available.min(), best.makespan) == (11, 9)
    assert longest_first_ratio(3) == pytest.approx(11 / 9)


@pytest.mark.parametrize(
    ("lengths", "hits", "queued", "message"),
    [
        ([1, 2], [[0]], [0], "2 x 1, got 1 x 1"),
        ([-1], [[0]], [0], "not negative"),
        ([1], np.zeros((1, 0)), [], "needs a unit"),
    ],
)
def test_bad_input(lengths, hits, queued, message):
    with pytest.raises(InputError, match=message):
        balanced_packing(lengths, hits, queued)
