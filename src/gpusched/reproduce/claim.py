"""Claims of a paper beside our figures, and the verdict that follows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Verdict = Literal["reproduced", "partly", "contradicted", "not testable here"]


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

    claims: tuple[Claim, ...]
    charts: dict[str, str] = field(default_factory=dict)
    """Figures of a page by name, as ``report.svg`` draws them."""

    @property
    def verdict(self) -> Verdict:
        """Every testable claim holds, some do, none does, or none could be tested."""
        tested = [claim.holds for claim in self.claims if claim.holds is not None]
        if not tested:
            return "not testable here"
        if all(tested):
            return "reproduced"
        return "partly" if any(tested) else "contradicted"


@dataclass(frozen=True, slots=True)
class Setting:
    """How an experiment is rerun."""

    seed: int = 0
    jobs: int = 2
    """Processes to use."""
    traces: Path | None = None
    """Folder of public traces; generators stand in for them where there is none."""
    progress: Callable[[str], None] = lambda message: None
    """Told now and then what is under way."""
