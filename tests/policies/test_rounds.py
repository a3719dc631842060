"""MC-SF in unit rounds: worked instances, and invariants on random ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.planning.hindsight import check_schedule, hindsight_optimum, latency_bound
from gpusched.policies.batching.rounds import mc_sf_starts

CASES = [
    (8, [(0, 1, 3)] * 3, [3, 3, 6], 12, 12),
    (6, [(0, 1, 2)] * 3, [2, 2, 4], 8, 8),
    (7, [(0, 1, 6), (0, 1, 3)], [7, 3], 15, 10),
    (10, [(0, 2, 2), (0, 2, 2), (0, 1, 5)], [2, 2, 6], 10, 10),
    (6, [(0, 3, 2), (0, 3, 1), (0, 1, 2)], [3, 1, 5], 9, 7),
    (9, [(0, 5, 2), (0, 1, 3), (0, 1, 3), (0, 1, 3)], [2, 4, 5, 6], 17, 17),
    (7, [(0, 2, 2), (0, 2, 5), (0, 3, 4)], [2, 11, 6], 18, 18),
    (7, [(0, 1, 6), (1, 1, 1), (2, 1, 1), (3, 1, 1)], [6, 2, 3, 4], 9, 9),
    (6, [(2, 3, 1), (1, 1, 3)], [5, 4], 6, 5),
]
"""KV budget, requests as (arrival, prompt, output), completions of MC-SF with ties by index, total
latency of MC-Benchmark, and of the optimum."""


def columns(rows):
    return tuple(np.array(rows, np.int64).T)


@pytest.mark.parametrize(("budget", "rows", "completions", "benchmark", "optimum"), CASES)
def test_worked_instances(budget, rows, completions, benchmark, optimum):
    a, s, o = columns(rows)
    starts = mc_sf_starts(a, s, o, budget, order="output-then-index")
    assert (starts + o).tolist() == completions
    first_come = mc_sf_starts(a, s, o, budget, order="arrival")
    assert int((first_come + o - a).sum()) == benchmark
    best = hindsight_optimum(a, s, o, budget, method="program")
    assert best.proven
    assert best.total_latency == optimum


def test_smaller_prompt_first_among_equals_finds_the_optimum():
    a, s, o = columns(CASES[4][1])
    assert int((mc_sf_starts(a, s, o, 6) + o).sum()) == 7


@st.composite
def instances(draw, largest=7):
    budget = draw(st.integers(6, 16))
    rows = []
    for _ in range(draw(st.integers(1, largest))):
        s = draw(st.integers(1, min(5, budget - 1)))
        rows.append((draw(st.integers(0, 6)), s, draw(st.integers(1, budget - s))))
    return budget, *columns(rows)


@given(
    instances(largest=20), st.booleans(), st.sampled_from(["output", "volume", "peak", "arrival"])
)
@settings(deadline=None, max_examples=150)
def test_look_ahead_never_exceeds_the_budget(instance, skip, order):
    budget, a, s, o = instance
    starts = mc_sf_starts(a, s, o, budget, order=order, continue_on_misfit=skip)
    assert check_schedule(a, s, o, budget, starts) == []
    total = int((starts + o - a).sum())
    assert total >= latency_bound(a, s, o, budget)
    scaled = mc_sf_starts(a, s, o, int(s.sum() + o.sum()), order=order)
    assert int((scaled + o - a).sum()) == int(o.sum())


@given(instances(largest=6))
@settings(deadline=None, max_examples=25)
def test_both_exact_methods_agree_and_bound_every_policy(instance):
    pytest.importorskip("ortools")
    budget, a, s, o = instance
    by_program = hindsight_optimum(a, s, o, budget, method="program")
    by_search = hindsight_optimum(a, s, o, budget, method="cp")
    assert by_program.proven
    assert by_search.proven
    assert by_program.total_latency == by_search.total_latency
    for schedule in (by_program, by_search):
        assert check_schedule(a, s, o, budget, schedule.starts) == []
        assert latency_bound(a, s, o, budget) <= schedule.total_latency


def test_uniform_prompts_stay_within_the_proven_factors():
    rng = np.random.default_rng(3)
    for _ in range(10):
        budget, n, s = 60, 40, 3
        o = rng.integers(1, budget // 2 - s, n)
        volume = s * o + o * (o + 1) // 2
        pairs = sum(volume[o <= x].sum() for x in o)
        total = int((mc_sf_starts(np.zeros(n), np.full(n, s), o, budget) + o).sum())
        assert total <= 1536 / budget * pairs + 24 * o.sum()
        assert total >= pairs / (6 * budget) + o.sum() / 6


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(0, 5, 9)], "request 0 can never be served"),
        ([(0, 1, 1), (0, 0, 1)], "request 1: prompt must be at least 1"),
        ([(-1, 1, 1)], "request 0: arrival"),
    ],
)
def test_bad_requests_are_named(rows, words):
    with pytest.raises(InputError, match=words):
        mc_sf_starts(*columns(rows), 10)
