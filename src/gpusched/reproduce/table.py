"""Reproductions on the terminal: published figures beside ours."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from gpusched.report.tables import terminal
from gpusched.reproduce.claim import Reproduction
from gpusched.reproduce.registry import Paper

HOLDS = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "not judged"}


def show_papers(papers: Mapping[str, Paper], console: Console | None = None) -> None:
    """Print the papers that can be rerun."""
    table = Table()
    for heading in ("name", "paper", "arXiv"):
        table.add_column(heading)
    for name, paper in papers.items():
        table.add_row(name, paper.title, paper.arxiv or "our own")
    (console or terminal()).print(table)


def show_reproduction(
    name: str, paper: Paper, result: Reproduction, seconds: float, console: Console | None = None
) -> None:
    """Print each claim, the published figure, ours, and the verdict."""
    console = console or terminal()
    console.print(f"[bold]{name}[/bold]  {paper.citation}")
    table = Table(show_lines=True)
    table.add_column("claim", ratio=3)
    table.add_column("published", ratio=2)
    table.add_column("ours", ratio=2)
    table.add_column("holds")
    table.add_column("differences", ratio=4)
    for claim in result.claims:
        unit = f" {claim.unit}" if claim.unit else ""
        table.add_row(
            claim.claim,
            claim.published + unit,
            claim.ours + unit,
            HOLDS[claim.holds],
            claim.differences,
        )
    console.print(table)
    console.print(f"verdict: [bold]{result.verdict}[/bold] in {seconds:.0f} s")
