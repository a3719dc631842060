"""Exact methods, bounds and heuristics against brute force and one another."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.planning.hindsight import (
    best_heuristic,
    check_schedule,
    hindsight_optimum,
    latency_bound,
    price_bound,
)
from gpusched.planning.hindsight.levels import level_weights
from gpusched.policies.batching.rounds import mc_sf_starts


@st.composite
def instances(draw, largest=7, budgets=(6, 16)):
    budget = draw(st.integers(*budgets))
    rows = []
    for _ in range(draw(st.integers(1, largest))):
        s = draw(st.integers(1, min(5, budget - 1)))
        rows.append((draw(st.integers(0, 6)), s, draw(st.integers(1, budget - s))))
    return budget, *np.array(rows, np.int64).T


def least_by_enumeration(a, s, o, budget):
    """Try every choice of starts; an optimum has none later than all arrivals and outputs."""
    last = int(a.max() + o.sum())
    best = None
    for starts in product(*(range(int(x), last + 1) for x in a)):
        total = sum(starts) + int((o - a).sum())
        if (best is None or total < best) and not check_schedule(a, s, o, budget, starts):
            best = total
    return best


@given(instances(largest=3, budgets=(4, 8)))
@settings(max_examples=25)
def test_exact_methods_find_what_enumeration_finds(instance):
    budget, a, s, o = instance
    least = least_by_enumeration(a, s, o, budget)
    for method in ("program", "plain"):
        found = hindsight_optimum(a, s, o, budget, method=method)
        assert found.proven
        assert found.total_latency == least


@given(instances(largest=6))
@settings(max_examples=25)
def test_exact_methods_agree_and_exceed_every_bound(instance):
    budget, a, s, o = instance
    pytest.importorskip("ortools")
    found = {m: hindsight_optimum(a, s, o, budget, method=m) for m in ("program", "cp", "plain")}
    assert len({schedule.total_latency for schedule in found.values()}) == 1
    least = found["program"].total_latency
    for schedule in found.values():
        assert schedule.proven
        assert check_schedule(a, s, o, budget, schedule.starts) == []
    assert latency_bound(a, s, o, budget) <= least
    assert price_bound(a, s, o, budget).bound <= least + 1e-6
    heuristic = best_heuristic(a, s, o, budget, moves=500)
    assert check_schedule(a, s, o, budget, heuristic) == []
    assert int((heuristic + o - a).sum()) >= least


@given(instances(largest=16, budgets=(6, 40)), st.sampled_from([2, 3, 4, 5, 7]), st.data())
def test_schedules_keep_to_level_rows(instance, q, data):
    budget, a, s, o = instance
    order = data.draw(st.sampled_from(["output", "volume", "peak", "arrival"]))
    starts = mc_sf_starts(a, s, o, budget, order=order, continue_on_misfit=data.draw(st.booleans()))
    if data.draw(st.booleans()):
        starts = best_heuristic(a, s, o, budget, moves=200, seed=data.draw(st.integers(0, 99)))
    weights, before = level_weights(s, o, budget, q)
    counted = np.zeros(int((starts + o).max()) + weights.shape[1] + before + 1, np.int64)
    for i, c in enumerate(starts + o):
        counted[c : c + weights.shape[1]] += weights[i]
    assert counted.max() <= q - 1


@given(instances(largest=12))
def test_excess_is_what_a_completion_costs_at_least(instance):
    budget, a, s, o = instance
    starts = best_heuristic(a, s, o, budget, moves=300)
    total = int((starts + o - a).sum())
    prices = price_bound(a, s, o, budget, target=total)
    completions = starts + o
    inside = completions < prices.excess.shape[1]
    rows = np.flatnonzero(inside)
    assert prices.bound + prices.excess[rows, completions[rows]].sum() <= total + 1e-6
    assert prices.below(total + 1)[rows, completions[rows]].all()


def test_prices_beat_the_closed_form_where_few_requests_are_large():
    rng = np.random.default_rng(0)
    s = rng.integers(1, 6, 50)
    o = rng.integers(1, 9, 50)
    a = np.zeros(50, np.int64)
    assert price_bound(a, s, o, 50).bound > 1.05 * latency_bound(a, s, o, 50)


def test_annealing_improves_on_every_look_ahead_order():
    rng = np.random.default_rng(1)
    budget = 50
    s = rng.integers(1, 6, 40)
    o = rng.integers(1, budget - s + 1)
    a = np.zeros(40, np.int64)
    plain = best_heuristic(a, s, o, budget, moves=0)
    better = best_heuristic(a, s, o, budget, moves=5000)
    assert check_schedule(a, s, o, budget, better) == []
    assert (better + o).sum() < 0.98 * (plain + o).sum()
    assert (better == best_heuristic(a, s, o, budget, moves=5000)).all()


def test_methods_work_without_or_tools(monkeypatch):
    monkeypatch.setattr("gpusched.planning.hindsight.optimum.has_cp", lambda: False)
    s, o, zeros = [2, 2, 3], [2, 5, 4], [0, 0, 0]
    assert hindsight_optimum(zeros, s, o, 7).total_latency == 18
    with pytest.raises(InputError, match="needs OR-tools"):
        hindsight_optimum(zeros, s, o, 7, method="cp")


def test_standard_output_is_left_alone_with_any_number_of_threads(capfd):
    for threads in (1, 2, 1):
        assert hindsight_optimum(*drawn(0, 8, 15), 15, method="program", threads=threads).proven
    assert capfd.readouterr().out == ""


def test_unknown_method_is_named():
    with pytest.raises(InputError, match="method must be one of"):
        hindsight_optimum([0], [1], [1], 5, method="guess")


def test_a_single_request_runs_at_once():
    found = hindsight_optimum([4], [3], [6], 9)
    assert found.starts.tolist() == [4]
    assert (found.total_latency, found.bound, found.proven) == (6, 6.0, True)


def drawn(seed, n, budget, longest=None):
    rng = np.random.default_rng(seed)
    s = rng.integers(1, 6, n)
    top = budget - s if longest is None else np.full(n, longest)
    return np.zeros(n, np.int64), s, rng.integers(1, top + 1)


BANDS = {
    (8, 15, None, 10): {
        "output-then-index": (1.03, 1.09),
        "output": (1.02, 1.08),
        "volume": (1.02, 1.08),
        "arrival": (1.35, 1.65),
    },
    (14, 40, 8, 8): {
        "output-then-index": (1.01, 1.08),
        "output": (1.01, 1.08),
        "volume": (1.0, 1.06),
        "arrival": (1.1, 1.45),
    },
}


@pytest.mark.parametrize("setting", BANDS)
def test_ratios_to_the_proven_optimum_stay_in_their_bands(setting):
    n, budget, longest, draws = setting
    ratios = {order: [] for order in BANDS[setting]}
    for seed in range(draws):
        a, s, o = drawn(seed, n, budget, longest)
        best = hindsight_optimum(a, s, o, budget, method="program", time_limit_s=120)
        assert best.proven
        for order, found in ratios.items():
            total = int((mc_sf_starts(a, s, o, budget, order=order) + o).sum())
            found.append(total / best.total_latency)
            assert found[-1] >= 1.0
    for order, (low, high) in BANDS[setting].items():
        assert low <= np.mean(ratios[order]) <= high, order
