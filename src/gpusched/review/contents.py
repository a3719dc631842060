"""All that a page of the review shows, gathered once."""

from dataclasses import dataclass
from datetime import date
from itertools import groupby

from gpusched.review.field import Field, differences, map_field
from gpusched.review.paper import Paper
from gpusched.review.snapshot import FrontRecord, Snapshot, load_snapshots
from gpusched.review.store import FrontText, Store
from gpusched.review.verdicts import Rerun, load_reruns

RECENT = 8


@dataclass(frozen=True)
class Contents:
    """Papers, fronts and verdicts of a review."""

    papers: dict[str, Paper]
    """Accepted ones, by arXiv id."""
    field: Field
    texts: dict[int, FrontText]
    reruns: dict[str, Rerun]
    """By name in ``gpusched reproduce``."""
    published: Snapshot | None
    """The latest snapshot of others."""
    waiting: int
    """Candidates without a human's word."""

    def rerun(self, paper: Paper) -> Rerun | None:
        """Return what the rerun of a paper gave."""
        return self.reruns.get(paper.reproduce) if paper.reproduce else None

    def name(self, front: int) -> str:
        """Return what a front is called."""
        return self.texts[front].name if front in self.texts else f"front {front}"

    def narrative(self, front: FrontRecord) -> str:
        """Return what is told of a front; empty where nothing is."""
        return self.texts[front.front].narrative if front.front in self.texts else ""

    @property
    def differences(self) -> list[str]:
        """Where our fronts differ from the published ones."""
        return [] if self.published is None else differences(self.field.snapshot, self.published)

    def recent(self, most: int = RECENT) -> list[tuple[str, list[Paper]]]:
        """Return the newest papers by day, newest first."""
        ranked = sorted(self.papers.values(), key=lambda p: (p.day, p.arxiv), reverse=True)[:most]
        return [
            (day.isoformat(), list(group)) for day, group in groupby(ranked, key=lambda p: p.day)
        ]


def gather(store: Store, seed: int = 0, as_of: date | None = None) -> Contents:
    """Return the contents of a review, as of a day where one is given.

    Raises:
        InputError: a file of the store is wrong, or no paper is accepted.
    """
    snapshots = load_snapshots(store.folder)
    published = [s for s in snapshots if s.origin == "published"]
    field = map_field(store.reviewed, snapshots, as_of=as_of, seed=seed)
    return Contents(
        papers={p.arxiv: p for p in field.graph.papers},
        field=field,
        texts={text.front: text for text in store.fronts},
        reruns=load_reruns(store.folder),
        published=published[-1] if published else None,
        waiting=len(store.candidates),
    )


def short_name(paper: Paper) -> str:
    """Return a name that fits under a dot."""
    if paper.reproduce is not None:
        return paper.reproduce
    head = paper.title.split(":")[0]
    return head if len(head) <= 18 else head[:17].rstrip() + "…"


def plain_title(paper: Paper) -> str:
    """Return a title with the TeX of arXiv's titles resolved where it is simple."""
    return paper.title.replace("$\\infty$", "∞").replace(" -- ", " – ")
