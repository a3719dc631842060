"""Ensembles: the worked example, the sweep as oracle, invariants, presolve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.sampling.allocation import Allocation
from gpusched.sampling.ensemble import (
    AnswerRates,
    limit_correct,
    margins,
    single_correct,
    sweep_pair,
)
from gpusched.sampling.weights import cost_frontier, ensemble_weights, presolved

TOY = [
    AnswerRates(np.array([[0.7, 0.3], [0.4, 0.6]]), 0),
    AnswerRates(np.array([[0.2, 0.5, 0.3], [0.5, 0.1, 0.4]]), 0),
]


def random_prompts(rng, prompts, models, answers=4, lost=0.1):
    found = []
    for _ in range(prompts):
        centre = rng.dirichlet(np.ones(answers))
        rates = np.round(rng.dirichlet(4 * centre + 0.05, models), 2)
        rates[:, -1] = np.maximum(1 - rates[:, :-1].sum(axis=1), 0)
        gold = -1 if rng.random() < lost else int(rng.integers(answers))
        found.append(AnswerRates(rates / rates.sum(axis=1, keepdims=True), gold))
    return found


def test_worked_example():
    found = ensemble_weights(TOY)
    assert found.correct == found.bound == 2
    assert found.proven
    assert found.weights == pytest.approx((0.375, 0.625), abs=1e-6)
    assert found.margin == pytest.approx(0.025, abs=1e-6)
    for weight, right in ((0.34, 2), (0.49, 2), (1 / 3 - 0.001, 1), (0.501, 1), (0, 1), (1, 1)):
        assert limit_correct(TOY, (weight, 1 - weight)) == right


def test_not_concave():
    prompts = [
        AnswerRates(np.array([[0.65, 0.35], [0.15, 0.85]]), 0),
        AnswerRates(np.array([[0.15, 0.85], [0.65, 0.35]]), 0),
    ]
    assert [limit_correct(prompts, (w, 1 - w)) for w in (0, 0.5, 1)] == [1, 0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_pairs_against_the_sweep(seed):
    prompts = random_prompts(np.random.default_rng(seed), 20, 2)
    found = ensemble_weights(prompts)
    count, _, margin = sweep_pair(prompts)
    if margin > 2e-3:
        assert found.correct == count
        assert found.margin == pytest.approx(margin, abs=1e-5)
    else:
        assert found.correct <= count


@pytest.mark.parametrize("seed", range(6))
def test_three_models_against_a_grid(seed):
    prompts = random_prompts(np.random.default_rng(100 + seed), 15, 3)
    found = ensemble_weights(prompts)
    grid = [(i / 30, j / 30, (30 - i - j) / 30) for i in range(31) for j in range(31 - i)]
    leads = np.array([margins(prompts, w) for w in grid])
    right = leads > 1e-9
    best = right.sum(axis=1).max()
    assert found.correct >= ((leads >= 1e-3).sum(axis=1)).max()
    assert limit_correct(prompts, found.weights) == found.correct <= found.bound
    level = [leads[k][right[k]].min() for k in range(len(grid)) if right[k].sum() == best]
    if found.correct == best and found.proven:
        assert found.margin >= max(level) - 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_another_model_never_hurts(seed):
    prompts = random_prompts(np.random.default_rng(seed), 12, 4)
    counts = [
        ensemble_weights([AnswerRates(p.rates[:k], p.gold) for p in prompts], widest=False).correct
        for k in range(1, 5)
    ]
    assert counts == sorted(counts)


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_one_sample_is_linear(seed, weights):
    prompts = random_prompts(np.random.default_rng(seed), 5, 3)
    w = np.array(weights) / sum(weights)
    each = [single_correct(prompts, corner) for corner in np.eye(3)]
    assert single_correct(prompts, w) == pytest.approx(w @ each)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_presolve_keeps_what_can_decide(seed):
    rng = np.random.default_rng(seed)
    (prompt,) = random_prompts(rng, 1, 3, answers=6, lost=0)
    rows = presolved(prompt.leads, 1e-3)
    for w in rng.dirichlet(np.ones(3), 50):
        right = (prompt.leads @ w >= 1e-3).all()
        kept = rows is not None and bool((rows @ w >= 1e-3).all())
        assert right == kept


def test_gold_never_given():
    prompts = [AnswerRates(np.array([[1.0], [1.0]]), -1)]
    found = ensemble_weights(prompts)
    assert (found.correct, found.bound) == (0, 0)


def test_a_model_without_answers():
    prompt = AnswerRates.of_counts([{"a": 3, "b": 1}, {}], "a")
    assert prompt.rates.tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert ensemble_weights([prompt]).correct == 1
    assert AnswerRates.of_counts([{}, {}], "a").gold == -1


def test_frontier_is_the_cheapest_for_each_count():
    prompts = random_prompts(np.random.default_rng(3), 20, 3)
    costs = (1.0, 2.0, 4.0)
    frontier = cost_frontier(prompts, costs)
    assert [p.cost for p in frontier] == sorted(p.cost for p in frontier)
    assert len({p.correct for p in frontier}) == len(frontier)
    grid = [(i / 40, j / 40, (40 - i - j) / 40) for i in range(41) for j in range(41 - i)]
    for w in grid:
        right = int((margins(prompts, w) >= 1e-3).sum())
        reached = [p.correct for p in frontier if p.cost <= np.dot(costs, w) + 1e-6]
        assert right <= max(reached, default=0)


def test_a_budget_binds():
    found = ensemble_weights(TOY, costs=(1.0, 3.0), max_cost=2.1)
    assert found.cost <= 2.1 + 1e-9
    assert found.correct == 2
    assert found.weights[0] >= 0.45 - 1e-9
    dear = ensemble_weights(TOY, costs=(0.0, 1.0), cost_weight=10.0)
    assert dear.weights == pytest.approx((1.0, 0.0))
    with pytest.raises(InfeasibleError, match="max_cost"):
        ensemble_weights(TOY, costs=(1.0, 3.0), max_cost=0.5)
    with pytest.raises(InfeasibleError, match="least_correct"):
        ensemble_weights(TOY, costs=(1.0, 3.0), least_correct=3)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(0, 99))
def test_allocation_follows_the_weights(weights, seed):
    total = sum(weights)
    allocation = Allocation(weights, seed=seed)
    counts = [0] * len(weights)
    for n in range(1, 60):
        counts[allocation.next()] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - n * weight / total) < max(len(weights) - 1, 1) + 1e-6


def test_dropped_models_leave_the_others_their_shares():
    allocation = Allocation([0.5, 0.25, 0.25])
    assert allocation.drop(0)
    chosen = [allocation.next() for _ in range(10)]
    assert sorted(set(chosen)) == [1, 2]
    assert abs(chosen.count(1) - 5) <= 1
    assert allocation.drop(1)
    assert not allocation.drop(2)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: AnswerRates(np.array([[np.nan]]), 0), "rates"),
        (lambda: AnswerRates(np.array([[0.9, 0.9]]), 0), "rates"),
        (lambda: AnswerRates(np.array([[-0.1]]), 0), "rates"),
        (lambda: AnswerRates(np.zeros((2, 0)), 0), "rates"),
        (lambda: AnswerRates(np.array([[1.0]]), 4), "gold"),
        (lambda: ensemble_weights([]), "prompts"),
        (lambda: ensemble_weights(TOY, costs=(1.0,)), "costs"),
        (lambda: ensemble_weights(TOY, max_cost=2.0), "costs"),
        (lambda: ensemble_weights(TOY, costs=(1, np.nan)), "costs"),
        (lambda: Allocation([0.0, 0.0]), "weights"),
        (lambda: Allocation([np.nan]), "weights"),
        (lambda: sweep_pair([AnswerRates(np.array([[1.0]]), 0)]), "prompts"),
    ],
)
def test_bad_input(make, word):
    with pytest.raises(InputError, match=word):
        make()
