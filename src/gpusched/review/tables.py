"""Tables of the review on the terminal."""

from collections.abc import Iterable, Mapping

from rich.markup import escape
from rich.table import Table

from gpusched.report.tables import terminal
from gpusched.review.contents import Contents, short_name
from gpusched.review.paper import Paper
from gpusched.review.verdicts import Rerun


def show_fronts(contents: Contents) -> None:
    """Print fronts, bridges and how they differ from the published snapshot."""
    snapshot = contents.field.snapshot
    found = contents.field.communities
    table = Table(title=f"fronts on {snapshot.date}", title_justify="left")
    for name in ("front", "status", "density", "papers", "most frequent methods"):
        table.add_column(name)
    for front in snapshot.fronts:
        table.add_row(
            f"{front.front}: {escape(contents.name(front.front))}",
            front.status,
            f"{front.density:.2f}",
            ", ".join(escape(short_name(contents.papers[a])) for a in front.papers),
            ", ".join(front.methods),
        )
    terminal().print(table)
    terminal().print(
        f"modularity {found.modularity:.3f}; {found.agreeing} of {found.runs} runs found this"
    )
    if snapshot.bridges:
        table = Table(title="bridges", title_justify="left")
        for name in ("paper", "score", "from", "to", "carries"):
            table.add_column(name)
        for bridge in snapshot.bridges:
            table.add_row(
                f"{bridge.arxiv} {escape(short_name(contents.papers[bridge.arxiv]))}",
                f"{bridge.score:.2f}",
                str(bridge.front),
                ", ".join(map(str, bridge.joins)),
                f"{(bridge.carries or 0):.0%}",
            )
        terminal().print(table)
    if contents.published is not None:
        lines = contents.differences
        terminal().print(
            f"against the snapshot published on {contents.published.date}:"
            + ("" if lines else " no difference")
        )
        for line in lines:
            terminal().print(f"  {escape(line)}")


def show_candidates(papers: Iterable[Paper]) -> None:
    """Print candidates, with what a machine wrote of them marked as such."""
    table = Table(title="candidates", title_justify="left")
    for name in ("similarity", "arXiv", "title", "like"):
        table.add_column(name)
    for paper in papers:
        words = escape(paper.title)
        if paper.draft is not None:
            words += f"\n[dim]by {escape(paper.draft.model)}: {escape(paper.draft.takeaway)}[/dim]"
        table.add_row(f"{paper.similarity or 0:.2f}", paper.arxiv, words, paper.nearest or "")
    terminal().print(table)


def show_reruns(reruns: Mapping[str, Rerun]) -> None:
    """Print what reruns gave."""
    table = Table(title="verdicts", title_justify="left")
    for name in ("name", "verdict", "claims that hold", "run on", "seconds"):
        table.add_column(name)
    for name, rerun in reruns.items():
        table.add_row(
            name,
            rerun.verdict,
            f"{rerun.holding} of {rerun.judged}",
            str(rerun.run_on or ""),
            f"{rerun.seconds:.0f}",
        )
    terminal().print(table)
