"""The folder that holds a review: papers, fronts, rubric, snapshots, verdicts."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpusched.domain.document import Section
from gpusched.errors import InputError, unknown_name
from gpusched.review.files import read_text, write_text
from gpusched.review.paper import Line, Paper, split_version
from gpusched.review.records import Records, parse_records, render_records


class FrontText(Section):
    """What the review says about a front; the number stays with it from snapshot to snapshot."""

    front: int
    name: Line
    narrative: Line


@dataclass(frozen=True)
class Store:
    """A review in a folder."""

    folder: Path
    papers: tuple[Paper, ...]
    fronts: tuple[FrontText, ...]
    _records: Records[Paper]
    _text: str

    @property
    def root(self) -> Path:
        """Folder of the repository, from which modules and pages are seen."""
        return Path(os.path.abspath(self.folder)).parent

    @property
    def reviewed(self) -> tuple[Paper, ...]:
        """Accepted papers, and withdrawn ones that had been accepted."""
        return tuple(p for p in self.papers if p.status == "accepted" or _was_accepted(p))

    @property
    def candidates(self) -> tuple[Paper, ...]:
        """Papers that wait for a human's word, most similar first."""
        waiting = [p for p in self.papers if p.status == "candidate"]
        return tuple(sorted(waiting, key=lambda p: (-(p.similarity or 0.0), p.arxiv)))

    def paper(self, identifier: str) -> Paper:
        """Return a paper by arXiv id, with or without a version.

        Raises:
            InputError: no such paper.
        """
        bare = split_version(identifier)[0] or identifier
        for paper in self.papers:
            if paper.arxiv == bare:
                return paper
        known = {p.arxiv for p in self.papers}
        raise InputError(f"{self.folder / 'papers.yaml'}: {unknown_name('paper', bare, known)}")

    def save(self, papers: Iterable[Paper]) -> "Store":
        """Write papers and return the store that holds them.

        Raises:
            InputError: the file cannot be written, or was changed since it was read.
        """
        text = render_records(self._records, list(papers), "arxiv")
        if text != self._text:
            write_text(self.folder / "papers.yaml", text, before=self._text)
        return load_store(self.folder)

    def replace(self, paper: Paper) -> "Store":
        """Write one paper anew."""
        return self.save([paper if p.arxiv == paper.arxiv else p for p in self.papers])


def load_store(folder: Path) -> Store:
    """Read a review.

    Raises:
        InputError: a file is missing or wrong; names file, line, record and field.
    """
    path = folder / "papers.yaml"
    if not path.is_file():
        raise InputError(
            f"{folder}: no review here (papers.yaml is missing); name its folder with --store"
        )
    text = read_text(path)
    records = parse_records(text, Paper, "arxiv", str(path))
    fronts = folder / "fronts.yaml"
    texts: tuple[FrontText, ...] = ()
    if fronts.exists():
        texts = parse_records(read_text(fronts), FrontText, "front", str(fronts)).records
    return Store(folder, records.records, texts, records, text)


def _was_accepted(paper: Paper) -> bool:
    return paper.status == "withdrawn" and paper.scores is not None
