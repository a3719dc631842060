"""How sure the votes are that their leader is the true mode (Best-of-infinity, arXiv 2509.21091).

After ``n`` votes, ``counts[0] >= counts[1] >= ...`` of ``s`` distinct answers, the answers' true
shares have a Dirichlet-process posterior: a Dirichlet over the answers seen and one category of
all unseen ones, of weight ``alpha``. With independent Gamma variables in place of the Dirichlet's
shares, the probability that the leader is not the largest is one integral,

    Q = integral of f_1(x) (1 - F_u(x) product_j F_j(x)) dx,

``f_1`` the leader's density and ``F_j`` the others' distribution functions. The Bayes factor of
"the leader is the mode" is ``s (1 - Q) / Q``, since a uniform prior holds it to be one of ``s + 1``.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import inf, isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammainc, gammaincc, gammainccinv, gammaln

from gpusched.errors import InputError

Prior = Literal["paper", "repo"]
"""``paper``: Dirichlet(counts, alpha), factor s. ``repo`` adds one to each and counts the unseen."""

ALPHA = 0.3
"""Weight of the answers not yet seen, the paper's."""
NODES = 200
SMOOTHING = 4
"""``x`` is a node's fourth power, which takes the singularity of ``F_u`` at zero out."""
CUT = 1e-17
"""Share of the leader's density beyond the last node."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(NODES)


def bayes_factor(counts: Iterable[int], *, alpha: float = ALPHA, prior: Prior = "paper") -> float:
    """Return the odds, over the prior's, that the leading answer is the true mode.

    ``counts``: votes of each distinct answer, in any order. One without a vote.

    Raises:
        InputError: a count that is not a positive whole number, or ``alpha`` that is not positive.
    """
    return _bayes_factor(_state(counts, alpha, prior), alpha, prior)


def wrong_probability(
    counts: Iterable[int], *, alpha: float = ALPHA, prior: Prior = "paper"
) -> float:
    """Return Q, the posterior probability that the leading answer is not the mode.

    Relative error below 1e-12, down to 1e-300. One without a vote.

    Raises:
        InputError: as for :func:`bayes_factor`.
    """
    return _wrong(_state(counts, alpha, prior), alpha, prior)


def wrong_bounds(
    counts: Iterable[int], *, alpha: float = ALPHA, prior: Prior = "paper"
) -> tuple[float, float]:
    """Return bounds of Q without an integral: the largest and the sum of pairwise probabilities.

    Raises:
        InputError: as for :func:`bayes_factor`.
    """
    return _bounds(_state(counts, alpha, prior), alpha, prior)


def reaches(
    state: tuple[int, ...], threshold: float, alpha: float = ALPHA, prior: Prior = "paper"
) -> bool:
    """Whether the Bayes factor of counts in descending order is at least ``threshold``.

    Integrates only where the bounds leave it open. The counts are not checked.
    """
    return bool(state) and _reaches(state, threshold, alpha, prior)


@lru_cache(maxsize=1 << 18)
def _reaches(state: tuple[int, ...], threshold: float, alpha: float, prior: Prior) -> bool:
    low, high = _bounds(state, alpha, prior)
    categories = len(state) + (prior == "repo")
    if _odds(high, categories) >= threshold:
        return True
    if _odds(low, categories) < threshold:
        return False
    return _bayes_factor(state, alpha, prior) >= threshold


def _state(counts: Iterable[int], alpha: float, prior: Prior) -> tuple[int, ...]:
    values = tuple(counts)
    if any(value != int(value) or value < 1 for value in values if isfinite(value)) or not all(
        isfinite(value) for value in values
    ):
        raise InputError(f"counts: must be positive whole numbers, got {list(values)}")
    if not (isfinite(alpha) and alpha > 0):
        raise InputError(f"alpha: must be positive, got {alpha}")
    if prior not in ("paper", "repo"):
        raise InputError(f"prior: must be paper or repo, got {prior!r}")
    return tuple(sorted((int(value) for value in values), reverse=True))


@lru_cache(maxsize=1 << 18)
def _bayes_factor(state: tuple[int, ...], alpha: float, prior: Prior) -> float:
    if not state:
        return 1.0
    return _odds(_wrong(state, alpha, prior), len(state) + (prior == "repo"))


def _odds(wrong: float, categories: int) -> float:
    if wrong >= 1.0:
        return 0.0
    return categories * (1.0 - wrong) / wrong if wrong > 0.0 else inf


@lru_cache(maxsize=1 << 18)
def _wrong(state: tuple[int, ...], alpha: float, prior: Prior) -> float:
    if not state:
        return 1.0
    more = int(prior == "repo")
    leader, unseen = state[0] + more, alpha + more
    if len(state) == 1:
        return float(betainc(leader, unseen, 0.5))
    log_below = _log_cdf(leader, unseen).copy()
    at = 1
    while at < len(state):
        count = state[at]
        alike = at
        while alike < len(state) and state[alike] == count:
            alike += 1
        log_below += (alike - at) * _log_cdf(leader, count + more)
        at = alike
    return float(-(_density(leader) @ np.expm1(log_below)))


@lru_cache(maxsize=1 << 16)
def _beyond(leader: int, other: float) -> float:
    """Probability that Gamma(other) exceeds Gamma(leader)."""
    return float(betainc(leader, other, 0.5))


@lru_cache(maxsize=1 << 18)
def _bounds(state: tuple[int, ...], alpha: float, prior: Prior) -> tuple[float, float]:
    if not state:
        return 1.0, 1.0
    more = int(prior == "repo")
    leader = state[0] + more
    low = high = _beyond(leader, alpha + more)
    for count in state[1:]:
        pair = _beyond(leader, count + more)
        low, high = max(low, pair), high + pair
    return low, min(high, 1.0)


@lru_cache(maxsize=1024)
def _points(leader: int) -> NDArray[np.float64]:
    last = float(gammainccinv(leader, CUT))
    points: NDArray[np.float64] = last * (0.5 * (_NODES + 1.0)) ** SMOOTHING
    return points


@lru_cache(maxsize=1024)
def _density(leader: int) -> NDArray[np.float64]:
    """Quadrature weights times the leader's density."""
    u = 0.5 * (_NODES + 1.0)
    x = _points(leader)
    slope = float(gammainccinv(leader, CUT)) * SMOOTHING * u ** (SMOOTHING - 1)
    density: NDArray[np.float64] = np.exp((leader - 1) * np.log(x) - x - gammaln(leader))
    return 0.5 * _WEIGHTS * slope * density


@lru_cache(maxsize=1 << 14)
def _log_cdf(leader: int, shape: float) -> NDArray[np.float64]:
    """Log of Gamma(shape)'s distribution function at the leader's nodes, exact in both tails."""
    x = _points(leader)
    above = gammaincc(shape, x)
    with np.errstate(divide="ignore"):
        far = np.log(np.maximum(gammainc(shape, x), 5e-324))
    values: NDArray[np.float64] = np.where(above < 0.5, np.log1p(-np.minimum(above, 0.5)), far)
    return values
