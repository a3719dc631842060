"""Lotteries: worked examples, HiGHS as oracle, invariants, noise, a toy language."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.reproduce.toy_language import scored_candidates
from gpusched.sampling.mixing_baselines import best_of_n, filtered, weighed
from gpusched.sampling.running_budget import RunningBudget
from gpusched.sampling.safe_mixing import MixingRules, gains, mix, penalised
from gpusched.solve.milp import Program
from gpusched.solve.simplex import capped_mix

OPEN = {"max_extra_harm": 1.0}
M, D = np.array([0.0, 0.4, 0.7, 0.9]), np.array([0.0, 0.1, 0.35, 0.8])


def oracle(value, cost, cap):
    """Value, and the cap's dual by a difference quotient, from HiGHS."""

    def best(limit):
        program = Program(maximize=True)
        w = program.variables(len(value), cost=value, upper=1.0)
        program.row(w, lower=1.0, upper=1.0)
        program.row(w, cost, upper=limit)
        return program.solve().objective

    return best(cap), best


def test_worked_example():
    found = mix(M, D, MixingRules(0.2, **OPEN))
    assert found.probabilities(4)[0] == pytest.approx([0, 0.6, 0.4, 0])
    assert found.helpfulness[0] == pytest.approx(0.52)
    assert found.extra_harm[0] == pytest.approx(0.2)
    assert found.price[0] == pytest.approx(1.2)
    assert filtered(M, D, threshold=0.2)[0] == 1
    assert best_of_n(M, D)[0] == 3


@pytest.mark.parametrize(
    ("weight", "lottery"),
    [(1.21, (0, 0.6, 0.4, 0)), (1.19, (0, 0, 1, 0)), (0.45, (0, 0, 1, 0)), (0.44, (0, 0, 0, 1))],
)
def test_penalties_below_the_price(weight, lottery):
    found = penalised(M, D, budget=0.2, weight=weight)
    assert found.probabilities(4)[0] == pytest.approx(lottery)


def test_budget_of_zero():
    assert mix([0, 0.3, 0.5], [0, 0.1, 0.4], MixingRules(0.0)).probabilities(3)[0].tolist() == [
        1,
        0,
        0,
    ]
    found = mix([0, 0.3, 0.5], [0.1, 0.0, 0.5], MixingRules(0.0))
    assert found.probabilities(3)[0] == pytest.approx([0, 0.8, 0.2])
    assert found.helpfulness[0] == pytest.approx(0.34)


def test_useless_candidates_are_refused():
    rng = np.random.default_rng(0)
    harmful = rng.random((50, 3))
    assert (mix([[0.5, 0.4, 0.3]] * 50, harmful).safer == 0).all()


unit = st.integers(0, 20).map(lambda k: k / 20)


@st.composite
def prompts(draw, most=9):
    m = draw(st.integers(1, most))
    return [draw(st.lists(unit, min_size=m, max_size=m)) for _ in range(2)]


@given(prompts(), unit)
def test_program_against_highs(scores, budget):
    value, cost = (row[0] for row in gains(*scores))
    best, at = oracle(value, cost, budget)
    found = mix(*scores, MixingRules(budget, **OPEN))
    assert found.helpfulness[0] == pytest.approx(best, abs=1e-7)
    # the price is the slope just right of the budget
    assert (at(budget + 1e-3) - best) / 1e-3 == pytest.approx(found.price[0], abs=1e-3)


@given(prompts(), unit, unit, st.floats(0, 0.2), st.floats(0, 0.4))
def test_safe_whatever_the_input(scores, budget, most, error, least):
    found = mix(*scores, MixingRules(budget, most, error, least))
    table = found.probabilities(len(scores[0]))[0]
    value, cost = (row[0] for row in gains(*scores))
    assert table.min() >= 0
    assert table.sum() == pytest.approx(1)
    assert (table > 0).sum() <= 2
    assert table @ cost <= budget + 1e-12
    assert table @ value >= -1e-12
    assert (cost[(table > 0)] <= max(most, 0) + 1e-12).all()
    assert found.extra_harm[0] == pytest.approx(table @ cost)
    assert found.helpfulness[0] == pytest.approx(table @ value)


@given(prompts())
def test_value_is_concave_and_never_falls(scores):
    budgets = np.linspace(0, 1, 21)
    values = np.array([mix(*scores, MixingRules(b, **OPEN)).helpfulness[0] for b in budgets])
    prices = np.array([mix(*scores, MixingRules(b, **OPEN)).price[0] for b in budgets])
    assert (np.diff(values) >= -1e-12).all()
    assert (np.diff(values, 2) <= 1e-9).all()
    assert (np.diff(prices) <= 1e-9).all()


@given(prompts(), unit, unit, unit)
def test_another_candidate_never_hurts(scores, helpful, harmful, budget):
    rules = MixingRules(budget, **OPEN)
    more = mix([*scores[0], helpful], [*scores[1], harmful], rules)
    assert more.helpfulness[0] >= mix(*scores, rules).helpfulness[0] - 1e-12


@given(prompts(), unit, st.floats(0, 0.5), st.floats(0, 0.5))
def test_only_differences_matter(scores, budget, a, b):
    half = np.array(scores) / 2
    rules = MixingRules(budget, **OPEN)
    here, there = mix(half[0], half[1], rules), mix(half[0] + a, half[1] + b, rules)
    assert there.helpfulness[0] == pytest.approx(here.helpfulness[0], abs=1e-9)


@given(prompts())
def test_no_cap_is_best_of_n(scores):
    found = mix(*scores, MixingRules(1.0, **OPEN))
    assert found.helpfulness[0] == max(scores[0]) - scores[0][0]
    assert found.price[0] == 0


@given(prompts(), unit, st.floats(0, 5))
def test_the_penalised_game_is_solved(scores, budget, weight):
    """No single candidate or pair on a grid does better."""
    value, cost = (row[0] for row in gains(*scores))
    found = penalised(*scores, budget=budget, weight=weight)

    def worth(v, c):
        return v - weight * np.maximum(c - budget, 0)

    best = worth(found.helpfulness[0], found.extra_harm[0])
    for share in np.linspace(0, 1, 11):
        v = share * value[:, None] + (1 - share) * value
        c = share * cost[:, None] + (1 - share) * cost
        assert worth(v, c).max() <= best + 1e-9


def test_many_candidates_and_none_within_the_cap():
    rng = np.random.default_rng(5)
    values, costs = rng.random((20, 300)), rng.random((20, 300))
    first, second, share, _ = capped_mix(values, costs, np.full(20, 0.3))
    for r in range(20):
        best, _ = oracle(values[r], costs[r], 0.3)
        got = share[r] * values[r, first[r]] + (1 - share[r]) * values[r, second[r]]
        assert got == pytest.approx(best, abs=1e-7)
    assert capped_mix(values, costs, np.full(20, -1.0))[0].tolist() == [-1] * 20


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_any_floats_end_and_keep_the_cap(helpful, harmful, budget, at_the_edge):
    """Even where the cap is a rounding error below a candidate's harm."""
    cost = gains(helpful, harmful)[1][0]
    if at_the_edge:
        budget = min(max(float(np.nextafter(cost[1], 0.0)), 0.0), 1.0)
    found = mix(helpful, harmful, MixingRules(budget, **OPEN))
    assert found.probabilities(3)[0] @ cost <= budget + 1e-15


def test_extreme_scores():
    tiny = 5e-324
    for scores in ([0, tiny, 1], [0, 1e-300, 1e-16], [0.3, 0.3, 0.3]):
        found = mix(scores, scores, MixingRules(0.1, **OPEN))
        assert found.extra_harm[0] <= 0.1
        assert np.isfinite(found.price[0])


@pytest.mark.parametrize("budget", [0.0, 0.03, 0.1])
def test_wrong_scores_keep_the_budget(budget):
    rng = np.random.default_rng(1)
    error = 0.05
    truth_h, truth_r = rng.random((10_000, 6)), rng.random((10_000, 6))
    seen = np.clip(truth_r + rng.choice([-error, error], truth_r.shape), 0, 1)
    robust = mix(truth_h, seen, MixingRules(budget, score_error=error, **OPEN))
    table = robust.probabilities(6)
    true_extra = (table * (truth_r - truth_r[:, :1])).sum(axis=1)
    assert true_extra.max() <= budget + 1e-12
    trusting = mix(truth_h, seen, MixingRules(budget, **OPEN)).probabilities(6)
    assert ((trusting * (truth_r - truth_r[:, :1])).sum(axis=1) > budget).any()


@given(prompts(), unit, st.floats(0, 0.2))
def test_errors_cost_less_than_a_lower_budget(scores, budget, error):
    """The fallback's share has no error: never worse than the paper's budget less twice the error."""
    cost = gains(*scores)[1][0]
    strict = 0.0
    if budget - 2 * error >= 0:
        strict = mix(*scores, MixingRules(budget - 2 * error, **OPEN)).helpfulness[0]
    robust = mix(*scores, MixingRules(budget, score_error=error, **OPEN))
    barred = (cost[1:] + 2 * error > 1).any()
    assert barred or robust.helpfulness[0] >= strict - 1e-9


def test_draws_follow_the_lottery():
    found = mix(np.tile(M, (40_000, 1)), np.tile(D, (40_000, 1)), MixingRules(0.2, **OPEN))
    drawn = D[found.draw(np.random.default_rng(3))]
    assert abs(drawn.mean() - 0.2) < 4 * drawn.std() / 200


ERROR, BUDGET = 0.02, 0.1


@pytest.fixture(scope="module")
def toy():
    """True and seen scores of candidates from a toy language, probes off by up to ERROR."""
    h, r = scored_candidates(1500, 6, seed=0)
    noise = np.random.default_rng(1).uniform(-ERROR, ERROR, (2, *h.shape))
    return h, r, np.clip(h + noise[0], 0, 1), np.clip(r + noise[1], 0, 1)


def test_toy_language_keeps_the_budget_of_every_prompt(toy):
    """And is more helpful than a filter that keeps it; best-of-n does not keep it."""
    h, r, seen_h, seen_r = toy
    table = mix(seen_h, seen_r, MixingRules(BUDGET, score_error=ERROR)).probabilities(7)
    extra = r - r[:, :1]
    assert (table * extra).sum(axis=1).max() <= BUDGET + 1e-12
    rows = np.arange(len(h))
    kept = seen_r - seen_r[:, :1] <= BUDGET - 2 * ERROR
    filter_ = np.where(kept, seen_h, -1).argmax(axis=1)
    gain = (table * h).sum(axis=1) - h[rows, filter_]
    assert gain.mean() > 4 * gain.std() / len(h) ** 0.5
    chosen = best_of_n(seen_h, seen_r)
    assert (extra[rows, chosen] > BUDGET).mean() > 0.1
    harms = [r[rows, weighed(seen_h, seen_r, weight=w)].mean() for w in (0, 1, 4)]
    assert harms == sorted(harms, reverse=True)


def test_toy_language_keeps_a_mean_budget(toy):
    """And is more helpful than every filter threshold of no more mean harm."""
    h, r, seen_h, seen_r = toy
    running = RunningBudget(BUDGET, max_extra_harm=1.0, step=0.2, price=1.0)
    chosen = [running.choose(a, b) for a, b in zip(seen_h, seen_r, strict=True)]
    rows = np.arange(len(h))
    harm = r[rows, chosen].mean()
    assert harm - r[:, 0].mean() <= running.bound + 2 * ERROR
    filters = [filtered(seen_h, seen_r, threshold=t) for t in np.linspace(0, 1, 101)]
    rivals = [h[rows, f].mean() for f in filters if r[rows, f].mean() <= harm]
    assert h[rows, chosen].mean() > max(rivals)


@given(st.lists(prompts(4), min_size=1, max_size=40), st.floats(0.05, 0.5), st.floats(0.01, 1))
def test_mean_budget_is_proven(sequence, budget, step):
    running = RunningBudget(budget, step=step, max_extra_harm=1.0)
    total = 0.0
    for helpful, harmful in sequence:
        total += harmful[running.choose(helpful, harmful)] - harmful[0]
        assert running.price <= 1 / budget + step
    assert total / len(sequence) <= running.bound + 1e-9
    assert running.extra_harm == pytest.approx(total)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: mix([0, np.nan], [0, 0]), "helpful.*candidate 1"),
        (lambda: mix([0, 0.5], [0, 1.5]), "harmful.*candidate 1"),
        (lambda: mix([0, -0.1], [0, 0]), "helpful"),
        (lambda: mix([], []), "no candidates"),
        (lambda: mix([0, 1], [0, 1, 1]), "shapes"),
        (lambda: mix([[0, 1], [1]], [0, 1]), "helpful"),
        (lambda: mix(["a"], [0]), "helpful"),
        (lambda: MixingRules(-0.1), "budget"),
        (lambda: MixingRules(np.nan), "budget"),
        (lambda: MixingRules(0.1, 2.0), "max_extra_harm"),
        (lambda: MixingRules(0.1, score_error=-1), "score_error"),
        (lambda: MixingRules(0.1, min_share=0.7), "min_share"),
        (lambda: penalised([0], [0], budget=0.1, weight=-1), "weight"),
        (lambda: weighed([0], [0], weight=np.inf), "weight"),
        (lambda: filtered([0], [0], threshold=2), "threshold"),
        (lambda: RunningBudget(0.0), "budget"),
        (lambda: RunningBudget(0.1, step=np.nan), "step"),
        (lambda: RunningBudget(0.1, price=11), "price"),
        (lambda: RunningBudget(0.1).choose([[0], [0]], [[0], [0]]), "one prompt"),
    ],
)
def test_bad_input(make, word):
    with pytest.raises(InputError, match=word):
        make()
