"""A paper as a source describes it."""

import re
import unicodedata
from dataclasses import dataclass
from datetime import date

WITHDRAWN = re.compile(
    r"^\W*((this|the) (paper|article|submission|manuscript|work|preprint) (has been|is|was) )?"
    r"(withdrawn|retracted)\b",
    re.I,
)


@dataclass(frozen=True)
class Found:
    """One entry of a response."""

    arxiv: str
    """Id without a version; empty where the source knows none."""
    title: str
    updated: date
    version: int | None = None
    submitted: date | None = None
    authors: tuple[str, ...] = ()
    affiliations: tuple[str, ...] = ()
    abstract: str = ""
    withdrawn: bool = False
    openalex: str | None = None
    references: tuple[str, ...] = ()


def clean(text: object, most: int = 500) -> str:
    """Return words of a source on one line, without characters that do not print."""
    words = "" if text is None else str(text)
    words = "".join(
        " " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in words
    )
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def cleaned(values: list[str], most: int = 60) -> tuple[str, ...]:
    """Return names on one line each, once each, without empty ones."""
    return tuple(dict.fromkeys(name for v in values if (name := clean(v, 200))))[:most]


def says_withdrawn(*texts: str | None) -> bool:
    """Tell whether a comment or an abstract begins by saying that the paper is withdrawn."""
    return any(WITHDRAWN.match(text) for text in texts if text)
