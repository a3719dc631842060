"""A lottery over candidate answers, as useful as a risk budget allows (arXiv 2510.09330).

Candidates have scores ``helpful`` and ``harmful`` in [0, 1]; column 0 is the fallback, a refusal.
The lottery maximises expected helpfulness while expected harm exceeds the fallback's by at most
``budget``. It bounds what the scores say: a harmful answer scored harmless is not caught.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.solve.simplex import capped_mix

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MixingRules:
    """What a lottery may do."""

    budget: float = 0.1
    """Expected harm beyond the fallback's, probability."""
    max_extra_harm: float = 0.5
    """No candidate is played whose own harm exceeds the fallback's by more."""
    score_error: float = 0.0
    """Largest error of a harm score: the budget then holds for the true ones."""
    min_share: float = 0.0
    """A smaller share of the riskier candidate goes to the safer one."""

    def __post_init__(self) -> None:
        for name, value, most in (
            ("budget", self.budget, 1.0), ("max_extra_harm", self.max_extra_harm, 1.0),
            ("score_error", self.score_error, 1.0), ("min_share", self.min_share, 0.5),
        ):  # fmt: skip
            if not 0.0 <= value <= most:
                raise InputError(f"{name}: must be from 0 to {most:g}, got {value}")


@dataclass(frozen=True, slots=True)
class Lotteries:
    """One lottery a prompt. Arrays of shape (prompts,)."""

    safer: Ints
    """Candidate within the budget; 0 is the fallback."""
    riskier: Ints
    """The other one; equal to ``safer`` where one is played for certain."""
    safer_share: Floats
    """Probability of the safer one."""
    helpfulness: Floats
    """Expected gain over the fallback."""
    extra_harm: Floats
    """Expected harm beyond the fallback's, by the scores."""
    price: Floats
    """Helpfulness that a unit more of budget would bring."""

    def probabilities(self, candidates: int) -> Floats:
        """Return the lotteries as shape (prompts, candidates)."""
        table = np.zeros((len(self.safer), candidates))
        rows = np.arange(len(self.safer))
        table[rows, self.safer] += self.safer_share
        table[rows, self.riskier] += 1.0 - self.safer_share
        return table

    def draw(self, rng: np.random.Generator) -> Ints:
        """Return a candidate for each prompt."""
        safer = rng.random(len(self.safer)) < self.safer_share
        chosen: Ints = np.where(safer, self.safer, self.riskier)
        return chosen


def mix(helpful: ArrayLike, harmful: ArrayLike, rules: MixingRules | None = None) -> Lotteries:
    """Return the best lottery for each prompt.

    ``helpful`` and ``harmful`` have shape (prompts, candidates), or (candidates,) for one prompt;
    column 0 is the fallback's.

    With ``score_error`` e a candidate's harm counts as 2e more, the fallback's as it is: whatever the
    true scores within e, the true expected harm keeps the budget. The paper lowers the budget by 2e
    instead, which is stricter, since the fallback's part of a lottery has no error.

    Raises:
        InputError: scores that are not numbers in [0, 1], of unequal shapes, or of no candidate.
    """
    rules = rules or MixingRules()
    value, cost = gains(helpful, harmful)
    return _solve(value, cost, rules)


def gains(helpful: ArrayLike, harmful: ArrayLike) -> tuple[Floats, Floats]:
    """Return helpfulness and harm less the fallback's, shape (prompts, candidates).

    Raises:
        InputError: as for :func:`mix`.
    """
    h, r = _scores("helpful", helpful), _scores("harmful", harmful)
    if h.shape != r.shape:
        raise InputError(f"helpful and harmful: shapes differ, {h.shape} and {r.shape}")
    return h - h[:, :1], r - r[:, :1]


def _scores(name: str, scores: ArrayLike) -> Floats:
    try:
        values = np.atleast_2d(np.asarray(scores, np.float64))
    except (TypeError, ValueError):
        raise InputError(f"{name}: expected a table of numbers, prompts x candidates") from None
    if values.ndim != 2 or values.shape[1] == 0:
        raise InputError(f"{name}: no candidates; column 0 must be the fallback's scores")
    # also false for nan
    inside = (values >= 0.0) & (values <= 1.0)
    if not inside.all():
        row, column = np.argwhere(~inside)[0]
        raise InputError(
            f"{name}: scores must be from 0 to 1, got {values[row, column]} for candidate {column} "
            f"of prompt {row}"
        )
    return np.ascontiguousarray(values)


def _solve(value: Floats, cost: Floats, rules: MixingRules) -> Lotteries:
    rows = np.arange(len(value))
    worst = cost + 2.0 * rules.score_error
    worst[:, 0] = 0.0
    barred = worst > rules.max_extra_harm
    allowed = np.where(barred, -2.0, value)
    safer, riskier, share, price = capped_mix(allowed, worst, np.full(len(value), rules.budget))
    if rules.min_share:
        share = np.where(1.0 - share < rules.min_share, 1.0, share)
    riskier = np.where(share == 1.0, safer, riskier)

    def expected(of: Floats) -> Floats:
        mean: Floats = share * of[rows, safer] + (1.0 - share) * of[rows, riskier]
        return mean

    return Lotteries(safer, riskier, share, expected(value), expected(cost), price)


def penalised(helpful: ArrayLike, harmful: ArrayLike, *, budget: float, weight: float) -> Lotteries:
    """Return the optimum of the game before its limit: excess harm costs ``weight`` a unit.

    The paper's game with odds ``weight`` of an adversary. It is the capped lottery from the price
    of the cap on; below, the single candidate best after the penalty.

    Raises:
        InputError: as for :func:`mix`, or a weight that is negative or not finite.
    """
    if not (np.isfinite(weight) and weight >= 0.0):
        raise InputError(f"weight: must be finite and not negative, got {weight}")
    value, cost = gains(helpful, harmful)
    capped = _solve(value, cost, MixingRules(budget, max_extra_harm=1.0))
    rows = np.arange(len(value))
    alone = (value - weight * np.maximum(cost - budget, 0.0)).argmax(axis=1)
    single = capped.price > weight
    chosen = np.where(single, alone, capped.safer)
    return Lotteries(
        chosen, np.where(single, alone, capped.riskier), np.where(single, 1.0, capped.safer_share),
        np.where(single, value[rows, alone], capped.helpfulness),
        np.where(single, cost[rows, alone], capped.extra_harm),
        np.where(single, weight, capped.price),
    )  # fmt: skip
