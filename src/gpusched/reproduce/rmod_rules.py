"""Rules compared in the rerun of RMOD, the objectives they face, and what is counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.sampling.controlled.markov import MarkovModel
from gpusched.sampling.controlled.strategy import ControlledDecoding
from gpusched.statistics import mean_interval

Floats = NDArray[np.float64]

CANDIDATES, BLOCK = 16, 8
CONFLICT = 0.5
"""Share of the objectives' common part that is taken away; two are then correlated by -0.4."""
STRENGTH = 10.0
"""On standardised values; chosen after the sweep of strengths, which is reported beside it."""
RULES: dict[str, dict[str, Any]] = {
    "reference": {"candidates": 1},
    "CD, one objective": {"rule": "fixed", "weights": {"0": 1.0}},
    "CD, uniform": {"rule": "fixed"},
    "maximin": {"rule": "maximin"},
    "RMOD": {},
    "RMOD, strength 1": {"strength": 1.0},
    "RMOD, strength 1, 10 steps": {"strength": 1.0, "paper_iterations": 10},
    "RMOD, sampled": {"rule": "robust-sample"},
}


@dataclass(frozen=True)
class Outcomes:
    """Figures of each rule by seed."""

    win_rate: Mapping[str, Floats]
    """Worst-case, in per cent: the least over objectives of the share of prompts on which the
    answer beats the reference's, ties counting half."""
    worst: Mapping[str, Floats]
    """Mean over prompts of the least standardised reward."""

    def mean(self, name: str) -> float:
        """Return a rule's worst-case win rate."""
        return float(self.win_rate[name].mean())

    def difference(self, a: str, b: str) -> tuple[float, float]:
        """Return the paired difference of worst-case win rates and its half width."""
        return mean_interval(self.win_rate[a] - self.win_rate[b])

    def worst_difference(self, a: str, b: str) -> tuple[float, float]:
        """Return the paired difference of mean worst rewards and its half width."""
        return mean_interval(self.worst[a] - self.worst[b])


def win_rate(rewards: Floats, reference: Floats) -> float:
    """Return the worst-case win rate, in per cent, of rewards (N, G) over a reference's."""
    wins = (rewards > reference) + 0.5 * (rewards == reference)
    return 100.0 * float(wins.mean(0).min())


def conflicting_chain(
    rng: np.random.Generator, objectives: int, tokens: int, length: int
) -> MarkovModel:
    """Return a chain with rewards that conflict, each standardised over the reference's answers."""
    transition = rng.dirichlet(np.full(tokens, 0.5), tokens)
    reward = rng.normal(size=(objectives, tokens))
    reward -= CONFLICT * reward.mean(0)
    model = MarkovModel(transition, reward)
    earned = model.earned(model.sample(rng.integers(tokens, size=2000), length, rng))
    shifted = reward - earned.mean(0)[:, None] / length
    return MarkovModel(transition, shifted / earned.std(0)[:, None])


def settings(objectives: int, **given: Any) -> ControlledDecoding:
    """Return settings for objectives named 0, 1, 2 and so on."""
    defaults = {"candidates": CANDIDATES, "block_tokens": BLOCK, "strength": STRENGTH}
    return ControlledDecoding(objectives=tuple(map(str, range(objectives))), **(defaults | given))
