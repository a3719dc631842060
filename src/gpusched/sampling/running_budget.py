"""A risk budget for traffic as a whole: what one prompt leaves unused, another may take."""

import numpy as np
from numpy.typing import ArrayLike

from gpusched.errors import InputError
from gpusched.sampling.safe_mixing import gains


class RunningBudget:
    """Chooses by helpfulness less a price times harm; the price follows the harm so far.

    The price is the dual variable of the mean budget, moved by ``step`` times the excess of each
    answer. Whatever the prompts, after n of them the mean extra harm is at most
    ``budget + (1 / budget + step) / (step n)``: a price above ``1 / budget`` admits no candidate
    beyond the budget. A single answer may exceed it, up to ``max_extra_harm``.
    """

    def __init__(
        self, budget: float, *, step: float = 0.1, max_extra_harm: float = 0.5, price: float = 0.0
    ) -> None:
        for name, value in (("budget", budget), ("max_extra_harm", max_extra_harm)):
            if not 0.0 < value <= 1.0:
                raise InputError(f"{name}: must be above 0 and at most 1, got {value}")
        if not (np.isfinite(step) and step > 0.0):
            raise InputError(f"step: must be positive, got {step}")
        if not 0.0 <= price <= 1.0 / budget:
            raise InputError(f"price: must be from 0 to 1 / budget, got {price}")
        self.budget, self.step, self.max_extra_harm = budget, step, max_extra_harm
        self.price = price
        self.answers = 0
        self.extra_harm = 0.0
        """Sum over the answers, by the scores."""

    def choose(self, helpful: ArrayLike, harmful: ArrayLike) -> int:
        """Return the candidate for one prompt; scores of shape (candidates,), the fallback first.

        Raises:
            InputError: as for ``safe_mixing.mix``, or scores of several prompts.
        """
        value, cost = gains(helpful, harmful)
        if len(value) != 1:
            raise InputError(f"helpful: expected scores of one prompt, got {len(value)}")
        barred = cost[0] > self.max_extra_harm
        worth = np.where(barred, -np.inf, value[0] - self.price * cost[0])
        best = np.flatnonzero(worth == worth.max())
        chosen = int(best[cost[0, best].argmin()])
        excess = float(cost[0, chosen]) - self.budget
        self.price = max(0.0, self.price + self.step * excess)
        self.answers += 1
        self.extra_harm += float(cost[0, chosen])
        return chosen

    @property
    def bound(self) -> float:
        """Mean extra harm proven not to be exceeded so far."""
        return self.budget + (1.0 / self.budget + self.step) / (self.step * max(self.answers, 1))
