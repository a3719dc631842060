"""Links of the review into the repository."""

import re
from pathlib import Path

import gpusched
from gpusched.review.paper import Paper

LINK = re.compile(r"\]\(([^)\s]+)\)")


def module_file(root: Path, module: str) -> Path | None:
    """Return the file of a module in the repository, or None where it has none."""
    parts = module.split(".")
    for source in (root / "src", root, Path(gpusched.__file__).parents[1]):
        for path in (
            source.joinpath(*parts).with_suffix(".py"),
            source.joinpath(*parts, "__init__.py"),
        ):
            if path.is_file():
                return path
    return None


def dead_links(root: Path, papers: tuple[Paper, ...]) -> list[str]:
    """Return what papers point to that does not exist, a line each."""
    lines = []
    for paper in papers:
        if paper.module is not None and module_file(root, paper.module) is None:
            lines.append(f"{paper.arxiv}: module {paper.module} does not exist")
        if paper.page is not None and not (root / paper.page).is_file():
            lines.append(f"{paper.arxiv}: page {paper.page} does not exist")
    return lines


def dead_links_of(page: Path) -> list[str]:
    """Return links of a Markdown page to files that do not exist, a line each."""
    lines = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        name = target.split("#")[0]
        if name and not re.match(r"[a-z]+:", name) and not (page.parent / name).exists():
            lines.append(f"{page.name}: link to {target} is dead")
    return lines
