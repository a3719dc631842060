"""Combination of advantages: worked instances, limits, invariants; numpy only."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.alignment.combine import MODES, combine
from gpusched.alignment.normalise import group_advantages
from gpusched.alignment.weights import next_multipliers
from gpusched.errors import InputError

PLAIN = {"normalise": False, "noon": False}
EXTRA = {
    "tchebycheff": {"levels": [0.0, 1.0], "ideal": [1.0, 1.0]},
    "lagrangian": {"multipliers": [0.5]},
    "mgda": {"gram": np.eye(2)},
    "mgda_ub": {"gram": np.eye(2)},
    "gapo": {"gram": np.diag([1.0, 4.0])},
}


def token(row, **given):
    return float(combine(np.array([row], float), mode="token", **(PLAIN | given)).advantages[0])


@pytest.mark.parametrize(
    ("row", "least"),
    [((3, 1, 2), 1), ((-1, 2), 0), ((-3, -1), -1), ((0, 5), 0), ((7,), 7), ((-2,), -2), ((0, 0), 0)],
)  # fmt: skip
def test_least_combination_of_scalars(row, least):
    assert token(row) == least


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=3))
def test_projection_equals_a_grid_of_weights(row):
    a = np.array(row)
    g = np.linspace(0, 1, 201)
    grid = np.stack([g, 1 - g], 1) if len(a) == 2 else np.array(
        [(x, y, 1 - x - y) for x in g[::4] for y in g[::4] if x + y <= 1]
    )  # fmt: skip
    found = combine(a[None], mode="token", **PLAIN)
    s = float(found.advantages[0])
    assert s**2 <= ((grid @ a) ** 2).min() + 1e-12
    assert found.weights.sum() == pytest.approx(1.0)
    assert (found.weights >= 0).all()
    assert found.weights @ a == pytest.approx(s, abs=1e-9)


def bandit(rewards, policy=None):
    """Advantages (arms, n) of a softmax policy's arms."""
    r = np.array(rewards)
    p = np.full(len(r), 1 / len(r)) if policy is None else policy
    return r - p @ r


def ascend(rewards, mode, steps=4000, rate=0.5, **given):
    """Exact policy gradient on a bandit; returns the mean rewards."""
    r, logits = np.array(rewards), np.zeros(len(rewards))
    for _ in range(steps):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        advantages = combine(bandit(r, p), mode=mode, normalise=False, **given).advantages
        logits += rate * p * (advantages - p @ advantages)
    return p @ r


def test_knee_of_a_bandit():
    rewards = [(1.0, 0.0), (0.0, 1.0), (0.8, 0.8)]
    found = combine(bandit(rewards), mode="token", normalise=False)
    assert found.advantages == pytest.approx([0, 0, 0.2])
    assert found.stalled == pytest.approx(2 / 3)
    assert ascend(rewards, "token", rate=2.0) == pytest.approx([0.8, 0.8], abs=5e-3)


def test_stall_with_noon_is_no_stationary_point():
    rewards = [(1.0, 0.0), (0.0, 1.0), (0.45, 0.45)]
    found = combine(bandit(rewards), mode="token", normalise=False)
    assert found.advantages == pytest.approx([0, 0, 0])
    assert found.stalled == 1.0
    assert ascend(rewards, "token", 10) == pytest.approx([0.4833, 0.4833], abs=1e-4)
    # yet the direction of least norm improves both
    p = np.full(3, 1 / 3)
    gradients = p[:, None] * bandit(rewards)
    direction = gradients.mean(1)
    assert direction == pytest.approx([0.0056, 0.0056, -0.0111], abs=1e-4)
    assert (gradients.T @ direction > 0).all()
    assert (ascend(rewards, "batch_qp", noon=False) > 0.499).all()
    assert (ascend(rewards, "batch_qp", noon=True, steps=10) > 0.4834).all()


def test_batch_scalar_carries_no_credit():
    rng = np.random.default_rng(0)
    for _ in range(5):
        p = rng.dirichlet(np.ones(4))
        a = bandit(rng.normal(size=(4, 2)), p)
        scalar = combine(a, mode="batch_scalar", normalise=False).advantages
        expected = p * (scalar - p @ scalar)
        assert expected == pytest.approx(np.zeros(4), abs=1e-15)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]))
def test_scale(seed, n):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(6, 5, n))
    scaled = a * np.array([1024.0, *([1.0] * (n - 1))])
    for mode in ("token", "batch_qp", "softmin", "gdpo", "batch_scalar", "linear"):
        one, other = (combine(x, mode=mode) for x in (a, scaled))
        assert other.advantages == pytest.approx(one.advantages, rel=1e-7, abs=1e-9)
    if n > 1:
        without = combine(np.maximum(scaled, 0), normalise=False).advantages
        rest = combine(np.maximum(a, 0)[..., 1:], normalise=False).advantages
        rows = scaled[..., 0] > 100
        assert without[rows] == pytest.approx(rest[rows])


@pytest.mark.parametrize("mode", ["token", "batch_qp", "linear", "batch_scalar", "mgda", "gapo"])
def test_single_objective(mode):
    rng = np.random.default_rng(1)
    a = rng.normal(size=(4, 6, 1))
    found = combine(a, mode=mode, normalise=False, noon=False, gram=np.eye(1)).advantages
    if mode == "batch_scalar":
        assert found == pytest.approx(np.full((4, 6), a.mean()))
    else:
        assert (found == a[..., 0]).all()
    if mode == "token":
        assert (combine(a, normalise=False).advantages == np.maximum(a[..., 0], 0)).all()


def test_noon_and_ratio():
    a = np.array([[[1.0, 2.0], [3.0, 4.0], [-1.0, 2.0]]])
    ratio = np.array([[1.1, 1.3, 1.0]])
    found = combine(a, ratio=ratio, normalise=False)
    assert found.advantages[0] == pytest.approx([1.0, 0.0, 0.0])
    assert found.stalled == pytest.approx(2 / 3)
    assert found.binding[0] > 0
    assert combine(a, ratio=ratio, normalise=False, noon=False).advantages[0] == pytest.approx(
        [1.0, 3.0, 0.0]
    )


@pytest.mark.parametrize("mode", MODES)
def test_masked_tokens_count_for_nothing(mode):
    rng = np.random.default_rng(2)
    a = rng.normal(size=(3, 4, 2))
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    given = EXTRA.get(mode, {})
    one = combine(a, mask, mode=mode, **given)
    other = combine(np.where(mask[..., None] > 0, a, 1e6), mask, mode=mode, **given)
    assert (one.advantages[mask == 0] == 0).all()
    assert other.advantages == pytest.approx(one.advantages)
    assert other.weights == pytest.approx(one.weights)
    nothing = combine(a, np.zeros((3, 4)), mode=mode, **given)
    assert (nothing.advantages == 0).all()
    assert nothing.stalled == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_missing_objectives(mode):
    a = np.array([[1.0, np.nan], [2.0, 1.0], [np.nan, np.nan], [-1.0, 0.5]])
    found = combine(a, mode=mode, normalise=False, **EXTRA.get(mode, {}))
    assert np.isfinite(found.advantages).all()
    if mode == "token":
        assert found.advantages == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_batch_qp_is_the_least_norm():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(50, 3)) + 0.2
    found = combine(a, mode="batch_qp", normalise=False)
    least = (found.advantages**2).sum()
    for w in rng.dirichlet(np.ones(3), 500):
        assert least <= ((a @ w) ** 2).sum() + 1e-9
    # with orthonormal score functions it is MGDA
    assert found.weights == pytest.approx(combine(a, mode="mgda", gram=a.T @ a).weights)


def test_other_modes_by_hand():
    a = np.array([[1.0, 3.0], [2.0, -1.0]])
    rule = {"normalise": False}
    assert combine(a, mode="linear", weights=[3, 1], **rule).advantages == pytest.approx(
        [1.5, 1.25]
    )
    assert combine(a, mode="lagrangian", multipliers=[1.0], **rule).advantages == pytest.approx(
        [2, 0.5]
    )
    soft = combine(a, mode="softmin", softness=1e3, **rule).advantages
    assert soft == pytest.approx([1.0, -1.0], abs=1e-3)
    assert combine(a, mode="softmin", softness=1e-6, **rule).advantages == pytest.approx(
        [2, 0.5], abs=1e-4
    )
    far = combine(a, mode="tchebycheff", levels=[0.0, 0.9], ideal=[1.0, 1.0], **rule).weights
    assert far == pytest.approx([1.025 / 1.05, 0.025 / 1.05])
    b = np.array([[1.0, 3.0], [2.0, -1.0], [4.0, 7.0]])
    total = ((b - b.mean(0)) / b.std(0, ddof=1)).sum(1)
    assert combine(b, mode="gdpo").advantages == pytest.approx(total / total.std(ddof=1))
    gram = np.diag([1.0, 100.0])
    assert combine(a, mode="mgda", gram=gram).weights == pytest.approx([100 / 101, 1 / 101])
    assert combine(a, mode="gapo", gram=gram).weights == pytest.approx([10 / 11, 1 / 11])
    assert next_multipliers([0.5, 0.1], [0.2, 2.0], [1.0, 1.0], 1.0) == pytest.approx([1.3, 0.0])


def test_float32_stays():
    a = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    assert combine(a).advantages.dtype == np.float32
    assert combine(a).advantages == pytest.approx(combine(a.astype(float)).advantages, abs=1e-6)


# ---- groups


def test_group_advantages():
    r = np.array([[1.0, 5.0], [3.0, 5.0], [0.0, np.nan], [np.nan, 2.0]])
    found = group_advantages(r, 2)
    assert found[:2] == pytest.approx(np.array([[-0.7071, 0], [0.7071, 0]]), abs=1e-4)
    assert np.isnan(found[2, 1])
    assert np.isnan(found[3, 0])
    assert found[2, 0] == 0
    assert group_advantages(r, 2, scale=False)[0] == pytest.approx([-1.0, 0.0])


@given(st.integers(0, 2**32 - 1))
def test_group_advantages_are_standardised(seed):
    rng = np.random.default_rng(seed)
    r = rng.normal(size=(24, 3)) * [1, 100, 1e-3] + rng.normal(size=3)
    a = group_advantages(r, 6).reshape(4, 6, 3)
    assert a.mean(1) == pytest.approx(np.zeros((4, 3)), abs=1e-9)
    assert a.std(1, ddof=1) == pytest.approx(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: combine(np.zeros((0, 2))), "advantages: must have shape"),
        (lambda: combine(np.zeros(3)), "advantages: must have shape"),
        (lambda: combine([["a", "b"]]), "advantages: not an array"),
        (lambda: combine([[np.inf, 1.0]]), r"advantages: infinite at \(0, 0\)"),
        (lambda: combine(np.ones((2, 2)), mode="tokens"), "did you mean token"),
        (lambda: combine(np.ones((2, 3, 2)), np.ones((2, 2))), r"mask: must have shape \(2, 3\)"),
        (lambda: combine(np.ones((2, 2)), ratio=np.ones(3)), "ratio: must have shape"),
        (lambda: combine(np.ones((2, 2)), mode="linear", weights=[1, -1]), "weights"),
        (lambda: combine(np.ones((2, 2)), mode="linear", weights=[1.0]), r"weights: must have shape \(2,\)"),
        (lambda: combine(np.ones((2, 2)), mode="softmin", softness=0), "softness"),
        (lambda: combine(np.ones((2, 2)), mode="tchebycheff"), "levels"),
        (lambda: combine(np.ones((2, 2)), mode="lagrangian", multipliers=[-1]), "multipliers"),
        (lambda: combine(np.ones((2, 2)), mode="mgda"), "gram: this mode needs"),
        (lambda: combine(np.ones((2, 2)), mode="gapo", gram=np.eye(3)), "gram: must have shape"),
        (lambda: group_advantages(np.ones((5, 2)), 2), "group_size: 2 does not divide 5"),
        (lambda: group_advantages(np.ones(5), 1), "rewards: must have shape"),
    ],
)  # fmt: skip
def test_bad_input(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_numpy_alone_suffices():
    """Neither torch nor what stands on it is imported by the parts that need only numpy."""
    code = (
        "import sys, numpy as np\n"
        "import gpusched.alignment.combine as c, gpusched.alignment.normalise as g\n"
        "import gpusched.sampling.controlled.completions, gpusched.sampling.controlled.markov\n"
        "import gpusched.reproduce.rmod, gpusched.reproduce.pama\n"
        "c.combine(np.eye(2)); g.group_advantages(np.eye(2), 2)\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
