"""Claims of a paper beside our figures, and the verdict that follows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["reproduced", "partly", "contradicted", "not testable here"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Claim:
    """One published figure or statement and what we measured."""

    claim: str
    """What the paper says is measured."""
    published: str
    ours: str
    unit: str
    holds: bool | None
    """Whether ours supports the claim; None where it could not be tested."""
    differences: str = ""
    """How our set-up differs, and why the figures do."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A paper's experiment, rerun."""

    name: str
    title: str
    arxiv: str
    claims: tuple[Claim, ...]

    @property
    def verdict(self) -> Verdict:
        """Every testable claim holds, some do, none does, or none could be tested."""
        tested = [claim.holds for claim in self.claims if claim.holds is not None]
        if not tested:
            return "not testable here"
        if all(tested):
            return "reproduced"
        return "partly" if any(tested) else "contradicted"
