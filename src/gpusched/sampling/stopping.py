"""When to stop sampling: the Bayes factor and the rules it is compared with."""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Protocol

import numpy as np
from scipy.special import betainc

from gpusched.errors import InputError
from gpusched.sampling.ballot import Tally
from gpusched.sampling.bayes_factor import ALPHA, Prior, reaches, wrong_bounds, wrong_probability


class StoppingRule(Protocol):
    """Decides from the votes alone whether they suffice."""

    def stops(self, tally: Tally) -> bool:
        """Whether to sample no further."""
        ...


@dataclass(frozen=True, slots=True)
class BayesFactor:
    """Stop once the Bayes factor of the leader is at least ``threshold`` (arXiv 2509.21091)."""

    threshold: float = 100.0
    alpha: float = ALPHA
    prior: Prior = "paper"

    def __post_init__(self) -> None:
        _check(self.threshold > 0, "threshold", "positive (inf: never stop)", self.threshold)
        _check(isfinite(self.alpha) and self.alpha > 0, "alpha", "positive", self.alpha)
        _check(self.prior in ("paper", "repo"), "prior", "paper or repo", self.prior)

    def stops(self, tally: Tally) -> bool:
        """Whether the factor is reached."""
        return reaches(tally.counts, self.threshold, self.alpha, self.prior)


@dataclass(frozen=True, slots=True)
class Confidence:
    """Stop once the leader is the mode with posterior probability ``level``."""

    level: float = 0.99
    alpha: float = ALPHA
    prior: Prior = "paper"

    def __post_init__(self) -> None:
        _check(0.0 < self.level < 1.0, "confidence", "above 0 and below 1", self.level)
        _check(isfinite(self.alpha) and self.alpha > 0, "alpha", "positive", self.alpha)
        _check(self.prior in ("paper", "repo"), "prior", "paper or repo", self.prior)

    def stops(self, tally: Tally) -> bool:
        """Whether the probability is reached; integrates only where bounds leave it open."""
        if not tally.counts:
            return False
        allowed = 1.0 - self.level
        low, high = wrong_bounds(tally.counts, alpha=self.alpha, prior=self.prior)
        if high <= allowed or low > allowed:
            return high <= allowed
        return wrong_probability(tally.counts, alpha=self.alpha, prior=self.prior) <= allowed


@dataclass(frozen=True, slots=True)
class Beta:
    """Stop once the leader beats the runner-up with probability ``level``, others left aside.

    The Beta rule of Adaptive-Consistency (arXiv 2305.11860).
    """

    level: float = 0.95

    def __post_init__(self) -> None:
        _check(0.0 < self.level < 1.0, "level", "above 0 and below 1", self.level)

    def stops(self, tally: Tally) -> bool:
        """Whether ``Pr[Beta(first + 1, second + 1) > 1/2]`` is reached."""
        if not tally.counts:
            return False
        first = tally.counts[0]
        return _beta(first, first - tally.lead) >= self.level


@lru_cache(maxsize=1 << 16)
def _beta(first: int, second: int) -> float:
    return float(1.0 - betainc(first + 1, second + 1, 0.5))


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Stop once the leader is the mode among the answers seen with probability ``level``.

    The Dirichlet rule of Adaptive-Consistency (arXiv 2305.11860): a uniform prior over the answers
    seen, none unseen. One answer alone is certain, so at least ``least_votes`` are taken.
    """

    level: float = 0.95
    least_votes: int = 3

    def __post_init__(self) -> None:
        _check(0.0 < self.level < 1.0, "level", "above 0 and below 1", self.level)
        _check(self.least_votes >= 1, "least_votes", "at least 1", self.least_votes)

    def stops(self, tally: Tally) -> bool:
        """Whether the probability is reached."""
        if tally.votes < self.least_votes:
            return False
        if len(tally.counts) == 1:
            return True
        *seen, last = (count + 1 for count in tally.counts)
        return 1.0 - wrong_probability(seen, alpha=float(last)) >= self.level


@dataclass(frozen=True, slots=True)
class Window:
    """Stop once all of a window of ``size`` votes agree: early-stopping self-consistency.

    Windows follow one another without overlap (ESC, arXiv 2401.10480).
    """

    size: int = 5

    def __post_init__(self) -> None:
        _check(self.size >= 1, "size", "at least 1", self.size)

    def stops(self, tally: Tally) -> bool:
        """Whether a window has just closed in which all agree."""
        return tally.votes > 0 and tally.votes % self.size == 0 and tally.run >= self.size


@dataclass(frozen=True, slots=True)
class Agreement:
    """Stop at 2, 4, 8, ... votes once a share ``level`` of them agrees."""

    level: float = 0.75

    def __post_init__(self) -> None:
        _check(0.0 < self.level <= 1.0, "level", "above 0 and at most 1", self.level)

    def stops(self, tally: Tally) -> bool:
        """Whether the votes are a power of two and agree."""
        votes = tally.votes
        return votes >= 2 and votes.bit_count() == 1 and tally.counts[0] >= self.level * votes


@dataclass(frozen=True, slots=True)
class Fixed:
    """Stop after ``samples``, those without an answer included: plain majority voting."""

    samples: int

    def __post_init__(self) -> None:
        _check(self.samples >= 1, "samples", "at least 1", self.samples)

    def stops(self, tally: Tally) -> bool:
        """Whether there are enough."""
        return tally.votes + tally.blank >= self.samples


def decided(tally: Tally, left: int) -> bool:
    """Whether no ``left`` further votes can change the leader."""
    return tally.lead > left


def lookahead(rule: StoppingRule, tally: Tally, most: int) -> int:
    """Return how many samples to have under way: as many leader's votes as the rule still needs.

    With the Bayes factor hardly any outcome stops earlier, so that samples launched together cost
    time and waste nothing. At least 1 and at most ``most``; a vote already decided at ``most``
    needs no more than that takes.
    """
    for more in range(1, most):
        after = tally.after_leader_votes(more)
        if rule.stops(after) or decided(after, most - more):
            return more
    return most


def futility(
    rule: StoppingRule, tally: Tally, left: int, *, alpha: float = ALPHA, draws: int = 200,
    seed: int = 0,
) -> float:  # fmt: skip
    """Return the posterior probability that the rule stops within ``left`` further votes.

    By ``draws`` continuations of the Polya urn that the posterior is: each vote is for an answer
    in proportion to its votes, or for a new one in proportion to ``alpha``.

    Raises:
        InputError: ``draws`` below 1.
    """
    _check(draws >= 1, "draws", "at least 1", draws)
    rng = np.random.default_rng(seed)
    stopped = 0
    for _ in range(draws):
        counts, latest, run = list(tally.counts), 0 if tally.run_leads else -1, tally.run
        total = tally.votes
        for u in rng.random(left):
            at, mass = 0, u * (total + alpha)
            while at < len(counts) and mass >= counts[at]:
                mass -= counts[at]
                at += 1
            if at == len(counts):
                counts.append(0)
            counts[at] += 1
            total += 1
            run = run + 1 if at == latest else 1
            latest = at
            top = max(counts)
            ordered = tuple(sorted(counts, reverse=True))
            if rule.stops(Tally(ordered, run, counts[at] == top, tally.blank)):
                stopped += 1
                break
    return stopped / draws


def _check(holds: bool, name: str, right: str, got: object) -> None:
    if not holds:
        raise InputError(f"{name}: must be {right}, got {got}")
