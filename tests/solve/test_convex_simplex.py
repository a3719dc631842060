"""Convex problems on simplices: worked instances, general solvers, invariants."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import logsumexp

from gpusched.errors import InputError
from gpusched.solve.convex_simplex import (
    log_mean_exp_weights,
    matrix_game,
    min_norm_weights,
    quadratic_weights,
)

WORKED = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 1.5]])


def objective(v, scale, w, smoothing=0.0):
    w = np.asarray(w)
    kl = np.sum(np.where(w > 0, w * np.log(np.maximum(w, 1e-300) * len(w)), 0.0))
    return logsumexp(scale * v @ w) - np.log(len(v)) + smoothing * kl


def shares(v, scale, w):
    x = scale * v @ w
    p = np.exp(x - x.max())
    return p / p.sum()


seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.1, 0.5, 1.0, 3.0, 10.0, 100.0, 1e4])


def draw(seed, most=8):
    rng = np.random.default_rng(seed)
    k, g = rng.integers(1, 17), rng.integers(1, most + 1)
    v = rng.normal(size=(k, g)) * rng.choice([0.01, 1.0, 50.0])
    if rng.random() < 0.3:  # ties
        v = np.round(v)
    if rng.random() < 0.2 and g > 1:  # duplicates
        v[:, 1] = v[:, 0]
    return v


@pytest.mark.parametrize(
    ("scale", "first", "value", "expected", "pick"),
    [
        (0.1, 0.0, 0.08526, (0.9505, 0.8717), 2),
        (0.5, 0.2642, 0.44630, (0.9074, 0.9074), 2),
        (1.0, 0.3464, 0.90058, (0.9097, 0.9097), 1),
        (2.0, 0.3875, 1.81272, (0.9146, 0.9146), 1),
        (10.0, 0.4204, 9.28965, (0.954, 0.954), 1),
        (100.0, 0.4278, None, None, 1),
    ],
)
def test_worked_instance(scale, first, value, expected, pick):
    found = log_mean_exp_weights(WORKED, scale)
    assert found.weights[0] == pytest.approx(first, abs=5.1e-5)
    assert (WORKED @ found.weights).argmax() == pick
    if value is not None:
        assert found.value == pytest.approx(value, abs=5.1e-6)
        assert shares(WORKED, scale, found.weights) @ WORKED == pytest.approx(expected, abs=5.1e-5)


def test_limits():
    steep = log_mean_exp_weights(WORKED, 150.0, tolerance=1e-15)
    assert steep.weights[0] == pytest.approx(3 / 7, abs=1e-3)
    game = matrix_game(WORKED)
    assert game.value == pytest.approx(1.0)
    assert game.mix == pytest.approx([0, 1, 0], abs=1e-9)
    # the objective of least mean over the candidates
    assert log_mean_exp_weights(WORKED, 1e-6).weights == pytest.approx([0, 1], abs=1e-9)


@pytest.mark.parametrize("scale", [0.1, 1.0, 50.0])
def test_identity(scale):
    found = log_mean_exp_weights(np.eye(2), scale)
    assert found.weights == pytest.approx([0.5, 0.5], abs=1e-9)
    assert found.value == pytest.approx(scale / 2, abs=1e-9)


def test_nothing_to_choose():
    assert log_mean_exp_weights(np.full((4, 3), 2.0), 1.0).weights == pytest.approx([1 / 3] * 3)
    assert log_mean_exp_weights([[1.0], [2.0]], 1.0).weights == pytest.approx([1.0])
    assert log_mean_exp_weights([[1.0, 2.0, 3.0]], 5.0).value == pytest.approx(5.0)


@given(seeds, scales)
def test_gap_is_a_proof_and_small(seed, scale):
    v = draw(seed)
    found = log_mean_exp_weights(v, scale)
    w = found.weights
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1.0, abs=1e-12)
    spread = np.ptp(v)
    assert found.value == pytest.approx(
        objective(v, scale, w), abs=1e-9 * scale * (1 + spread + np.abs(v).max())
    )
    gradient = scale * shares(v, scale, w) @ v
    gap = w @ gradient - gradient.min()
    assert gap <= 1e-7 * scale * spread + 1e-12
    rng = np.random.default_rng(seed)
    for other in np.vstack([rng.dirichlet(np.ones(len(w)), 20), np.eye(len(w))]):
        assert objective(v, scale, other) >= found.value - gap - 1e-9 * scale * (
            1 + np.abs(v).max()
        )


@given(seeds)
def test_worst_value_grows_with_scale(seed):
    v = draw(seed)
    grid = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0]
    worst = [(shares(v, t, log_mean_exp_weights(v, t).weights) @ v).min() for t in grid]
    assert (np.diff(worst) >= -1e-6 * (1 + np.ptp(v))).all()
    # never worse than the reference on the worst objective, by more than the divergence it pays
    for t, value in zip(grid, worst, strict=True):
        p = shares(v, t, log_mean_exp_weights(v, t).weights)
        kl = np.sum(np.where(p > 0, p * np.log(np.maximum(p * len(v), 1e-300)), 0.0))
        assert value - kl / t >= v.mean(0).min() - 1e-6 * (1 + np.ptp(v))


@given(seeds, scales, st.floats(-5, 5))
def test_shifts(seed, scale, shift):
    v = draw(seed, 4)
    # ties among many optima are the optimiser's own choice; strict convexity rules them out
    found = log_mean_exp_weights(v, scale, smoothing=0.1)
    moved = log_mean_exp_weights(v + shift, scale, smoothing=0.1)
    assert moved.weights == pytest.approx(found.weights, abs=2e-3)
    assert moved.value == pytest.approx(
        found.value + scale * shift, abs=1e-6 * scale * (1 + np.ptp(v))
    )
    better = v.copy()
    better[:, 0] += abs(shift)
    assert log_mean_exp_weights(better, scale, smoothing=0.1).weights[0] <= found.weights[0] + 2e-3


@pytest.mark.parametrize("smoothing", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_against_slsqp(scale, smoothing):
    rng = np.random.default_rng(1)
    for g in (2, 3, 5, 8):
        v = rng.normal(size=(9, g))
        found = log_mean_exp_weights(v, scale, smoothing=smoothing)
        other = minimize(
            lambda w, v=v: objective(v, scale, np.maximum(w, 0), smoothing), np.full(g, 1 / g), method="SLSQP",
            bounds=[(0, 1)] * g, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        assert found.value <= other.fun + 1e-8
        assert found.value == pytest.approx(other.fun, abs=1e-4)


@given(seeds, st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 10.0]))
def test_smoothing_gap(seed, smoothing):
    v = draw(seed)
    found = log_mean_exp_weights(v, 3.0, smoothing=smoothing)
    assert found.gap <= 1e-6 * 3.0 * np.ptp(v) + 1e-12
    rng = np.random.default_rng(seed)
    for other in rng.dirichlet(np.ones(v.shape[1]), 20):
        assert objective(v, 3.0, other, smoothing) >= found.value - 1e-6 * (1 + np.abs(v).max())


def test_smoothing_is_uniform_in_the_limit():
    found = log_mean_exp_weights(WORKED, 1.0, smoothing=1e6)
    assert found.weights == pytest.approx([0.5, 0.5], abs=1e-5)


def test_overflow():
    rng = np.random.default_rng(3)
    for g in (2, 5):
        found = log_mean_exp_weights(1e6 * rng.normal(size=(50, 8, g)), 1.0)
        assert np.isfinite(found.value).all()
        assert (found.gap <= 1.0).all()  # 1e-6 of the scale
    v = rng.normal(size=(8, 4))
    limit = log_mean_exp_weights(v, 1e6).value / 1e6
    assert limit == pytest.approx(matrix_game(v).value, abs=1e-5)


def test_batch_and_start():
    rng = np.random.default_rng(5)
    v = rng.normal(size=(3, 4, 8, 5))
    found = log_mean_exp_weights(v, 10.0)
    assert found.weights.shape == (3, 4, 5)
    assert found.weights[1, 2] == pytest.approx(log_mean_exp_weights(v[1, 2], 10.0).weights)
    near = log_mean_exp_weights(v + 1e-4 * rng.normal(size=v.shape), 10.0, start=found.weights)
    assert near.steps.mean() < 0.6 * found.steps.mean()


def by_enumeration(q, c):
    best = np.inf
    n = len(c)
    for size in range(1, n + 1):
        for chosen in combinations(range(n), size):
            s = list(chosen)
            kkt = np.block(
                [[q[np.ix_(s, s)], np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]]
            )
            u = np.linalg.lstsq(kkt, np.append(-c[s], 1.0), rcond=None)[0][:size]
            if (u >= -1e-9).all() and abs(u.sum() - 1) < 1e-9:
                best = min(best, 0.5 * u @ q[np.ix_(s, s)] @ u + c[s] @ u)
    return best


@given(seeds)
def test_quadratic_equals_enumeration(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    x = rng.normal(size=(n, int(rng.integers(1, 9)))) + rng.normal()
    if rng.random() < 0.3:
        x = np.round(x)
    c = rng.normal(size=n) * rng.choice([0.0, 1.0])
    found = quadratic_weights(x @ x.T, c)
    assert found.value == pytest.approx(
        by_enumeration(x @ x.T, c), abs=1e-8 * (1 + np.abs(x).max() ** 2)
    )
    assert found.gap <= 1e-8 * (1 + (x @ x.T).max())
    assert found.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("n", [8, 16, 40])
def test_many_vectors_by_their_gap(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(100, n, n // 2)) + 0.3
    gram = x @ np.swapaxes(x, 1, 2)
    found = min_norm_weights(gram)
    point = np.einsum("bn,bnd->bd", found.weights, x)
    # the point of least norm separates the hull from the origin
    products = np.einsum("bnd,bd->bn", x, point)
    assert (products.min(1) >= (point**2).sum(1) - 1e-7).all()
    assert found.value == pytest.approx((point**2).sum(1), abs=1e-9)


def test_min_norm_by_hand():
    for vectors, weights in (
        ([[1.0, 0.0], [0.0, 2.0]], [0.8, 0.2]),
        ([[1.0, 1.0], [3.0, 3.0]], [1.0, 0.0]),
        ([[2.0, 0.0], [-1.0, 0.0]], [1 / 3, 2 / 3]),
    ):
        x = np.array(vectors)
        assert min_norm_weights(x @ x.T).weights == pytest.approx(weights)
    assert min_norm_weights(np.zeros((3, 3))).value == 0.0
    x = 1e-9 * np.array([[1.0, 0.0], [0.0, 2.0]])
    assert min_norm_weights(x @ x.T).weights == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: log_mean_exp_weights([[1.0, np.nan]]), r"scores: must be finite, got nan at \(0, 1\)"),
        (lambda: log_mean_exp_weights(np.zeros((0, 2))), "no candidates"),
        (lambda: log_mean_exp_weights(np.zeros((2, 0))), "no objectives"),
        (lambda: log_mean_exp_weights([1.0, 2.0]), "scores: needs at least 2 axes"),
        (lambda: log_mean_exp_weights([["a", "b"]]), "scores: not an array of numbers"),
        (lambda: log_mean_exp_weights(np.eye(2), 0.0), "scale"),
        (lambda: log_mean_exp_weights(np.eye(2), 1.0, smoothing=-1.0), "smoothing"),
        (lambda: log_mean_exp_weights(np.eye(2), 1.0, start=[0.5, 0.6]), "start"),
        (lambda: log_mean_exp_weights(np.eye(2), 1.0, start=[1.0, 0.0, 0.0]), "start: must have shape"),
        (lambda: min_norm_weights(np.ones((2, 3))), "square"),
        (lambda: min_norm_weights([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
        (lambda: min_norm_weights([[-1.0]]), "negative"),
        (lambda: quadratic_weights(np.eye(2), [1.0, 2.0, 3.0]), "linear"),
        (lambda: matrix_game(np.zeros((0, 2))), "payoff"),
        (lambda: matrix_game([[np.inf]]), "payoff"),
    ],
)  # fmt: skip
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()


@given(seeds, st.sampled_from([0.0, 1e-3, 1.0]))
def test_any_start_leads_to_the_same_value(seed, smoothing):
    v = draw(seed)
    g = v.shape[1]
    best = log_mean_exp_weights(v, 3.0, smoothing=smoothing)
    for start in np.eye(g)[:3]:
        found = log_mean_exp_weights(v, 3.0, smoothing=smoothing, start=start)
        assert found.value == pytest.approx(float(best.value), abs=1e-6 * (1 + np.ptp(v)))
        assert found.gap <= 1e-6 * 3.0 * np.ptp(v) + 1e-12
