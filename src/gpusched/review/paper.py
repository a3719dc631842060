"""A paper of the review as its record in the store says."""

import re
from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from gpusched.domain.document import Section
from gpusched.errors import unknown_name
from gpusched.reproduce.registry import PAPERS

Status = Literal["candidate", "accepted", "rejected", "withdrawn"]
Flag = Literal["must-read", "changes-thinking", "discuss"]
ARXIV_ID = re.compile(r"(\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7})")


def _quoted(value: object) -> object:
    if isinstance(value, int | float):
        raise ValueError(f"{value} is read as a number; put the id in quotes, such as '2502.14617'")
    return value


def _one_line(value: object) -> object:
    if isinstance(value, str) and ("\n" in value or value != value.strip()):
        raise ValueError("must be one line without spaces around it")
    return value


Line = Annotated[str, BeforeValidator(_one_line), StringConstraints(min_length=1, max_length=2000)]
Tag = Annotated[str, BeforeValidator(_one_line), StringConstraints(pattern=r"^[a-z0-9_]{2,60}$")]
ArxivId = Annotated[
    str,
    BeforeValidator(_quoted),
    StringConstraints(pattern=rf"^{ARXIV_ID.pattern}$"),
]
Reference = Annotated[
    str,
    BeforeValidator(_quoted),
    StringConstraints(pattern=rf"^({ARXIV_ID.pattern}|W\d+|10\.\d+/\S+)$"),
]
Score = Annotated[int, Field(strict=True, ge=1, le=10)]


class Scores(Section):
    """Marks from 1 to 10 by the rubric in ``rubric.md``."""

    method: Score
    practice: Score
    impact: Score

    @property
    def total(self) -> int:
        """Sum of the three."""
        return self.method + self.practice + self.impact


class Draft(Section):
    """A summary written by a machine; it holds until a human accepts the paper."""

    takeaway: Line
    quotes: tuple[Line, ...] = ()
    """Evidence, word for word in the abstract."""
    model: Line


class Newer(Section):
    """A version on arXiv that our record does not describe yet."""

    version: int | None = Field(default=None, ge=1)
    updated: date


class Paper(Section):
    """One record of ``papers.yaml``; keys are written in this order, one a line."""

    arxiv: ArxivId
    title: Line
    status: Status
    version: int | None = Field(default=None, ge=1)
    """The version that the record describes, where known."""
    submitted: date | None = None
    """Of the first version."""
    updated: date
    """Of the version that the record describes."""
    seen: date | None = None
    """When the review first listed it."""
    withdrawn: date | None = None
    newer: Newer | None = None
    authors: tuple[Line, ...] = ()
    affiliations: tuple[Line, ...] = ()
    openalex: Annotated[str, StringConstraints(pattern=r"^W\d+$")] | None = None
    methods: tuple[Tag, ...] = ()
    problems: tuple[Tag, ...] = ()
    references: tuple[Reference, ...] = ()
    """arXiv ids, OpenAlex ids or DOIs, as far as known."""
    llm_role: tuple[Tag, ...] = ()
    """What language models do in the method; empty for nothing."""
    flags: tuple[Flag, ...] = ()
    scores: Scores | None = None
    takeaway: Line | None = None
    """What it means for this product, in our words."""
    draft: Draft | None = None
    module: Annotated[str, StringConstraints(pattern=r"^[a-z_]\w*(\.\w+)*$")] | None = None
    """Where we implement it."""
    page: Line | None = None
    """Our page about it, as seen from the repository's root."""
    reproduce: str | None = None
    """Its name in ``gpusched reproduce``."""
    similarity: float | None = Field(default=None, ge=0, le=1)
    """To the accepted papers, of a candidate."""
    nearest: ArxivId | None = None
    """The accepted paper that a candidate is most like."""
    note: Line | None = None

    @field_validator("methods", "problems", "references", "llm_role", "flags", "authors")
    @classmethod
    def _once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        twice = [v for i, v in enumerate(values) if v in values[:i]]
        if twice:
            raise ValueError(f"{twice[0]!r} is listed twice")
        return values

    @model_validator(mode="after")
    def _check(self) -> "Paper":
        if self.status == "accepted":
            for name in ("scores", "takeaway", "methods", "problems"):
                if not getattr(self, name):
                    raise ValueError(f"an accepted paper needs {name}")
        if self.status == "withdrawn" and self.withdrawn is None:
            raise ValueError("a withdrawn paper needs the date, withdrawn: YYYY-MM-DD")
        if self.reproduce is not None:
            if self.reproduce not in PAPERS:
                raise ValueError(f"reproduce: {unknown_name('paper', self.reproduce, PAPERS)}")
            if PAPERS[self.reproduce].arxiv != self.arxiv:
                raise ValueError(
                    f"reproduce: {self.reproduce} is the rerun of {PAPERS[self.reproduce].arxiv}"
                )
        return self

    @property
    def day(self) -> date:
        """The day under which it is listed."""
        return self.seen or self.updated

    @property
    def first_submitted(self) -> date:
        """Day of the first version; the first of the id's month where only that is known."""
        if self.submitted is not None:
            return self.submitted
        digits = self.arxiv.split("/")[-1]
        century = 1900 if "/" in self.arxiv and digits[:2] >= "91" else 2000
        return date(century + int(digits[:2]), min(max(int(digits[2:4]), 1), 12), 1)


def title_key(title: str) -> str:
    """Return what two spellings of one title have in common."""
    return re.sub(r"[^a-z0-9]+", "", title.lower())


def split_version(identifier: str) -> tuple[str, int | None]:
    """Return an arXiv id without its version, and the version where one is given.

    Takes ids, addresses and DOIs: ``2502.14617v2``, ``https://arxiv.org/abs/2502.14617``,
    ``10.48550/arXiv.2502.14617``. Returns an empty id where there is none.
    """
    text = re.sub(r"^https?://", "", identifier.strip())
    text = re.sub(r"^(export\.|www\.)?arxiv\.org/(abs|pdf|html)/", "", text, flags=re.I)
    text = re.sub(r"^(dx\.)?(doi\.org/)?10\.48550/arxiv\.", "", text, flags=re.I)
    text = re.sub(r"^arxiv:", "", text, flags=re.I).removesuffix(".pdf")
    match = re.fullmatch(rf"({ARXIV_ID.pattern})(v(\d+))?", text)
    if match is None:
        return "", None
    return match[1], int(match[5]) if match[5] else None
