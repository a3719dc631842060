"""MC-SF in unit rounds: worked instances, and invariants on random ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.hindsight import (
    best_heuristic,
    check_schedule,
    hindsight_optimum,
    latency_bound,
)
from gpusched.policies.batching.lookahead import insert, shortfall
from gpusched.policies.batching.rounds import RoundPolicy, mc_sf_starts, run_rounds

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


@given(st.integers(1, 4), st.integers(8, 30), st.data())
def test_uniform_prompts_stay_within_the_proven_factors(s, half, data):
    """(T3) of the paper for MC-SF, and (T4) for the optimum, of which annealing gives an upper end
    and prices a lower one."""
    budget = 2 * (s + half)
    o = np.array(data.draw(st.lists(st.integers(1, half), min_size=1, max_size=40)))
    a, prompts = np.zeros(len(o), np.int64), np.full(len(o), s)
    volume = s * o + o * (o + 1) // 2
    pairs = sum(int(volume[o <= x].sum()) for x in o)
    total = int((mc_sf_starts(a, prompts, o, budget) + o).sum())
    assert total <= 1536 / budget * pairs + 24 * o.sum()
    good = best_heuristic(a, prompts, o, budget, moves=200)
    assert int((good + o).sum()) >= pairs / (6 * budget) + o.sum() / 6


@st.composite
def states(draw):
    """A round in which some run, with predictions that may be outlived, and one that waits."""
    now = draw(st.integers(0, 30))
    running = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, now))
        running.append((draw(st.integers(1, 6)), start, draw(st.integers(1, 40))))
    return (
        now,
        running,
        draw(st.integers(1, 8)),
        draw(st.integers(1, 40)),
        draw(st.integers(5, 150)),
    )


@given(states())
@settings(max_examples=500)
def test_completion_rounds_suffice_for_the_look_ahead(state):
    """(I2): the check at predicted ends equals the sum in every later round."""
    now, running, prompt, predicted, limit = state
    ends, bases = np.zeros((1, 8), np.int64), np.zeros((1, 8), np.int64)
    for size, (s, start, expected) in enumerate(running):
        insert(ends, bases, 0, size, start + expected, s - start)
    last = now + predicted
    fits = shortfall(ends, bases, 0, len(running), now + 1, prompt + 1, last, limit, 0) == 0
    expected_fit = True
    for t in range(now + 1, max([last] + [start + e for _, start, e in running]) + 1):
        held = prompt + t - now if t <= last else 0
        for s, start, expected in running:
            if t <= max(start + expected, now + 1):
                held += s + t - start
        # rounds without the candidate are no matter of its admission
        expected_fit &= held <= limit or t > last
    assert fits == expected_fit


@given(instances(largest=15), st.integers(2, 4))
def test_schedules_scale_with_lengths_and_budget(instance, factor):
    """(I6)"""
    budget, a, s, o = instance
    starts = mc_sf_starts(a, s, o, budget)
    scaled = [factor * x for x in (a, s, o)]
    assert check_schedule(*scaled, factor * budget, factor * starts) == []


def slow_rounds(a, s, o, budget, predicted, policy):
    """The rules in plain Python: lists, and sums over every round."""
    limit = int((1 - policy.margin) * budget + 1e-9)
    expected = predicted.copy()
    keys = {
        "output": lambda i: (expected[i], s[i], a[i], i),
        "arrival": lambda i: (a[i], i),
    }
    waiting, running, starts, t = set(), {}, {}, 0
    todo = set(range(len(a)))

    def used(at, now, resident):
        """Tokens in a later round; one that outlives its prediction is taken to run one more."""
        return sum(
            s[i] + at - p for i, p in resident.items() if at <= max(p + expected[i], now + 1)
        )

    while todo or waiting or running:
        for i in [i for i in todo if a[i] <= t]:
            todo.remove(i)
            waiting.add(i)
        for i in [i for i, p in running.items() if p + o[i] <= t]:
            starts[i] = running.pop(i)
        while used(t + 1, t, running) > budget:
            gone = list(running)
            if policy.clearing == "least-predicted":
                gone = [min(gone, key=lambda i: (max(expected[i], t + 1 - running[i]), -a[i], -i))]
            elif policy.clearing == "newest":
                gone = [max(gone, key=lambda i: (running[i], a[i], i))]
            for i in gone:
                expected[i] = max(expected[i], t - running.pop(i) + 1)
                waiting.add(i)
        for i in sorted(waiting, key=keys[policy.order]):
            rounds = range(t + 1, t + expected[i] + 1) if policy.look_ahead else (t + 1,)
            if running and any(used(at, t, {**running, i: t}) > limit for at in rounds):
                break
            waiting.remove(i)
            running[i] = t
        t += 1
        if t > 3000:
            return None
    return np.array([starts[i] for i in range(len(a))])


@given(
    instances(largest=14),
    st.sampled_from(["output", "arrival"]),
    st.booleans(),
    st.sampled_from(["all", "newest", "least-predicted"]),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300)
def test_compiled_rounds_equal_plain_ones(instance, order, look_ahead, clearing, margin, random):
    budget, a, s, o = instance
    predicted = np.array([max(1, round(x * random.uniform(0.3, 1.7))) for x in o])
    policy = RoundPolicy(order, look_ahead, margin, clearing=clearing)
    slow = slow_rounds(a, s, o, budget, predicted, policy)
    try:
        run = run_rounds(a, s, o, budget, policy, predicted=predicted)
    except InfeasibleError:
        assert slow is None
        return
    assert slow is not None
    assert run.starts.tolist() == slow.tolist()
    assert check_schedule(a, s, o, budget, run.starts) == []
    assert (run.completions - run.starts == o).all()


@given(instances(largest=20), st.integers(0, 9))
def test_over_estimates_need_no_clearing(instance, seed):
    """(I1), (I3)"""
    budget, a, s, o = instance
    rng = np.random.default_rng(seed)
    predicted = np.minimum(np.ceil(o * rng.uniform(1.0, 2.0, len(o))), budget - s).astype(np.int64)
    run = run_rounds(a, s, o, budget, predicted=predicted)
    assert run.clearings.sum() == 0
    assert check_schedule(a, s, o, budget, run.starts) == []


def test_clearing_everything_again_and_again_is_infeasible():
    with pytest.raises(InfeasibleError, match="again and again"):
        run_rounds([0, 0], [1, 1], [8, 8], 10, "greedy")


def test_random_clearing_gets_through_where_clearing_all_does_not():
    run = run_rounds([0, 0], [1, 1], [8, 8], 10, "greedy-clearing", seed=3)
    assert run.clearings.sum() > 0
    assert check_schedule([0, 0], [1, 1], [8, 8], 10, run.starts) == []
    again = run_rounds([0, 0], [1, 1], [8, 8], 10, "greedy-clearing", seed=3)
    assert (run.starts == again.starts).all()


def test_a_cleared_request_starts_again_before_later_arrivals():
    """Short predictions overflow the budget in round 3; the first to arrive goes first again."""
    run = run_rounds([0, 0, 1], [1, 1, 1], [6, 6, 1], 7, "mc-fcfs", predicted=[2, 2, 1])
    assert (run.clearings > 0).tolist() == [True, True, False]
    assert run.starts[0] < run.starts[1]


def test_tight_lower_ends_beat_loose_upper_ends():
    """A_min learns lengths by running, A_max reserves upper ends (arXiv 2508.14544)."""
    rng = np.random.default_rng(0)
    s, o = rng.integers(1, 6, 400), rng.integers(1, 45, 400)
    a = np.zeros(400, np.int64)
    known = run_rounds(a, s, o, 200).total_latency
    upper = run_rounds(a, s, o, 200, "a-max", predicted=np.full(400, 45)).total_latency
    lower = run_rounds(a, s, o, 200, "a-min", predicted=np.maximum(8 * o // 10, 1)).total_latency
    assert lower < 1.05 * known
    assert lower < 0.9 * upper


def test_a_long_trace_is_served_whole():
    rng = np.random.default_rng(0)
    n = 20_000
    arrivals = np.sort(rng.integers(0, 30_000, n))
    s, o = rng.integers(1, 60, n), rng.integers(1, 120, n)
    run = run_rounds(arrivals, s, o, 4000, predicted=np.maximum(o - 5, 1))
    assert (run.starts >= arrivals).all()
    base, running = np.zeros((2, int(run.completions.max()) + 2))
    np.add.at(base, run.starts + 1, s - run.starts)
    np.add.at(running, run.starts + 1, 1)
    np.subtract.at(base, run.completions + 1, s - run.starts)
    np.subtract.at(running, run.completions + 1, 1)
    held = base.cumsum() + running.cumsum() * np.arange(len(base))
    assert 0.9 * 4000 <= held.max() <= 4000


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


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"order": "longest"}, "order"),
        ({"margin": 1.0}, "margin"),
        ({"clear_probability": 0.0}, "clear_probability"),
        ({"skip": -1}, "skip"),
    ],
)
def test_bad_policies_are_named(settings_, words):
    with pytest.raises(InputError, match=words):
        RoundPolicy(**settings_)


def test_bad_runs_are_named():
    with pytest.raises(InputError, match="unknown round policy 'mcsf'"):
        run_rounds([0], [1], [1], 5, "mcsf")
    with pytest.raises(InputError, match="predictions must be 1 positive"):
        run_rounds([0], [1], [1], 5, predicted=[0])
    with pytest.raises(InputError, match="priorities must be 1 numbers"):
        run_rounds([0], [1], [1], 5, priority=[np.nan])
