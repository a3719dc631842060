"""What a source found, brought into the records: each paper once, whatever told of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from gpusched.review.found import Found
from gpusched.review.paper import Newer, Paper, title_key

Rank = Callable[[str, str], tuple[float, str | None]]


@dataclass
class Tally:
    """What an update did, in arXiv ids and counts."""

    seen: int = 0
    proposed: list[str] = field(default_factory=list)
    newer: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    unlike: set[str] = field(default_factory=set)
    """Below the floor of similarity."""
    without_id: int = 0
    """Not on arXiv, as far as the source knows."""
    skipped: list[str] = field(default_factory=list)
    """Steps to which no answer is kept, without network."""


class Merger:
    """Records under change."""

    def __init__(self, papers: tuple[Paper, ...], rank: Rank, floor: float, today: date) -> None:
        """Start from the records of a store.

        Args:
            papers: the records.
            rank: similarity and nearest accepted paper of a title and an abstract.
            floor: least similarity to be proposed.
            today: the day on which new papers are seen.
        """
        self.papers = {paper.arxiv: paper for paper in papers}
        self.titles = {title_key(paper.title): paper.arxiv for paper in papers}
        self.rank = rank
        self.floor = floor
        self.today = today
        self.tally = Tally()

    def add(self, found: Found) -> None:
        """Bring in one entry."""
        self.tally.seen += 1
        identifier = found.arxiv
        if identifier not in self.papers:
            identifier = self.titles.get(title_key(found.title), identifier)
        if not identifier:
            self.tally.without_id += 1
        elif identifier in self.papers:
            before = self.papers[identifier]
            self.papers[identifier] = self._known(before, found)
        else:
            self._new(found)

    def _new(self, found: Found) -> None:
        if found.withdrawn:
            return
        similarity, nearest = self.rank(found.title, found.abstract)
        if similarity < self.floor:
            self.tally.unlike.add(found.arxiv)
            return
        self.papers[found.arxiv] = Paper(
            arxiv=found.arxiv,
            title=found.title,
            status="candidate",
            version=found.version,
            submitted=found.submitted,
            updated=found.updated,
            seen=self.today,
            authors=found.authors,
            affiliations=found.affiliations,
            openalex=found.openalex,
            references=found.references,
            similarity=similarity,
            nearest=nearest,
        )
        self.titles[title_key(found.title)] = found.arxiv
        self.tally.unlike.discard(found.arxiv)
        self.tally.proposed.append(found.arxiv)

    def _known(self, paper: Paper, found: Found) -> Paper:
        """Return a record with what an entry adds; what a human wrote stays."""
        if paper.status in ("rejected", "withdrawn"):
            return paper
        if found.withdrawn:
            self.tally.withdrawn.append(paper.arxiv)
            return paper.model_copy(update={"status": "withdrawn", "withdrawn": self.today})
        changes: dict[str, object] = {}
        for name in ("submitted", "authors", "affiliations", "openalex"):
            if not getattr(paper, name) and getattr(found, name):
                changes[name] = getattr(found, name)
        if len(found.references) > len(paper.references):
            changes["references"] = found.references
        if found.arxiv == paper.arxiv and found.version is not None:
            changes |= self._version(paper, found)
        return paper.model_copy(update=changes) if changes else paper

    def _version(self, paper: Paper, found: Found) -> dict[str, object]:
        version, updated = found.version, found.updated
        later = version > paper.version if paper.version and version else updated > paper.updated
        if not later:
            return (
                {"version": version} if paper.version is None and updated == paper.updated else {}
            )
        if paper.status == "candidate":
            return {"version": version, "updated": updated, "title": found.title}
        if paper.newer is not None and (paper.newer.version or 0) >= (version or 0):
            return {}
        self.tally.newer.append(paper.arxiv)
        return {"newer": Newer(version=version, updated=updated)}
