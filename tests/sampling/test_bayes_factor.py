"""The Bayes factor against published values, Monte Carlo and its own bounds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc

from gpusched.errors import InputError
from gpusched.sampling.bayes_factor import bayes_factor, reaches, wrong_bounds, wrong_probability

VALUES = {
    (1,): (0.812252, 4.3263, 0.670108, 4.0626),
    (2,): (0.934090, 14.1723, 0.821898, 9.2295),
    (3,): (0.973688, 37.0048, 0.905382, 19.1377),
    (5,): (0.995128, 204.248, 0.974038, 75.035),
    (1, 1): (0.452641, 1.6539, 0.406526, 2.0550),
    (2, 1): (0.718323, 5.1003, 0.610366, 4.6995),
    (3, 1): (0.858013, 12.0857, 0.759237, 9.4604),
    (5, 3, 2): (0.717157, 7.6066, 0.670038, 8.1226),
    (10, 9): (0.592727, 2.9107, 0.588004, 4.2816),
    (20, 10): (0.969286, 63.117, 0.964622, 81.798),
    (30, 20, 10): (0.923557, 36.245, 0.919286, 45.558),
    (3, 1, 1, 1): (0.711345, 9.8574, 0.592996, 7.2849),
}


@pytest.mark.parametrize("counts", VALUES)
def test_values(counts):
    paper_p, paper_bf, repo_p, repo_bf = VALUES[counts]
    for prior, p, factor in (("paper", paper_p, paper_bf), ("repo", repo_p, repo_bf)):
        assert 1 - wrong_probability(counts, prior=prior) == pytest.approx(p, abs=1e-6)
        assert bayes_factor(counts, prior=prior) == pytest.approx(factor, rel=2e-5)


@pytest.mark.parametrize("n", [1, 2, 10, 100, 500])
def test_one_answer_is_an_incomplete_beta(n):
    assert wrong_probability((n,)) == pytest.approx(betainc(n, 0.3, 0.5), rel=1e-9)


def test_resolves_far_tails():
    assert wrong_probability((100,)) == pytest.approx(1.692e-32, rel=1e-3)
    assert 0 < wrong_probability((300, 2)) < 1e-70


@pytest.mark.parametrize("counts", [(300, 2), (40, 7), (100, 60), (500, 100)])
def test_quadrature_of_two_answers_without_unseen(counts):
    """With next to no weight on the unseen, two answers are an incomplete beta."""
    exact = betainc(counts[0], counts[1], 0.5)
    assert wrong_probability(counts, alpha=1e-12) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (4, 3, 1), (6, 2, 1, 1), (10, 9)])
def test_monte_carlo(counts):
    rng = np.random.default_rng(1)
    draws = 200_000
    gammas = rng.gamma(np.array([*counts, 0.3]), size=(draws, len(counts) + 1))
    wrong = (gammas.argmax(axis=1) != 0).mean()
    exact = wrong_probability(counts)
    assert abs(wrong - exact) < 4 * math.sqrt(exact * (1 - exact) / draws)


states = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(states, st.sampled_from(["paper", "repo"]))
def test_sandwich(counts, prior):
    low, high = wrong_bounds(counts, prior=prior)
    exact = wrong_probability(counts, prior=prior)
    assert low * (1 - 1e-9) <= exact <= high * (1 + 1e-9)


def _partitions(total, largest):
    if total == 0:
        yield ()
    for first in range(min(total, largest), 0, -1):
        for rest in _partitions(total - first, first):
            yield (first, *rest)


def test_sandwich_of_every_state_to_twelve_votes():
    for n in range(1, 13):
        for counts in _partitions(n, n):
            low, high = wrong_bounds(counts)
            assert low * (1 - 1e-9) <= wrong_probability(counts) <= high * (1 + 1e-9)


@given(states, st.sampled_from(["paper", "repo"]))
def test_a_leaders_vote_raises_the_factor(counts, prior):
    counts = sorted(counts, reverse=True)
    more = [counts[0] + 1, *counts[1:]]
    assert bayes_factor(more, prior=prior) > bayes_factor(counts, prior=prior)


@given(states, st.randoms())
def test_order_does_not_matter(counts, random):
    shuffled = list(counts)
    random.shuffle(shuffled)
    assert bayes_factor(shuffled) == bayes_factor(counts)


@given(st.integers(1, 100))
def test_a_tie_never_stops(n):
    assert bayes_factor((n, n)) < 2 + 1e-9
    assert not reaches((n, n), 2 + 1e-9)


@given(states, st.sampled_from([2.0, 5.0, 10.0, 30.0, 100.0, 1e4]))
def test_bounds_decide_as_the_integral(counts, threshold):
    state = tuple(sorted(counts, reverse=True))
    assert reaches(state, threshold) == (bayes_factor(state) >= threshold)


def test_no_votes():
    assert bayes_factor(()) == 1.0
    assert not reaches((), 2.0)


@pytest.mark.parametrize(
    ("counts", "options", "word"),
    [
        ((0,), {}, "counts"), ((1.5,), {}, "counts"), ((math.nan,), {}, "counts"),
        ((math.inf,), {}, "counts"), ((1,), {"alpha": 0.0}, "alpha"),
        ((1,), {"alpha": math.nan}, "alpha"), ((1,), {"prior": "mine"}, "prior"),
    ],
)  # fmt: skip
def test_bad_input(counts, options, word):
    with pytest.raises(InputError, match=word):
        bayes_factor(counts, **options)
