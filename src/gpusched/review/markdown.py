"""The review as one Markdown page."""

import os
import re
from pathlib import Path

from gpusched.review.contents import Contents, plain_title, short_name
from gpusched.review.links import module_file
from gpusched.review.paper import Paper
from gpusched.review.verdicts import Rerun

CLAIMS = 6
HOLDS = {True: "yes", False: "no", None: "not judged"}


def render_markdown(contents: Contents, root: Path, page: Path, picture: str) -> str:
    """Return the page.

    Args:
        contents: of the review.
        root: folder of the repository.
        page: file that the text is for; links are relative to it.
        picture: file name of the graph beside it.
    """
    snapshot = contents.field.snapshot
    reruns = [r for p in contents.papers.values() if (r := contents.rerun(p))]
    counts = {
        v: sum(r.verdict == v for r in reruns) for v in dict.fromkeys(r.verdict for r in reruns)
    }
    verdicts = ", ".join(f"{n} {v}" for v, n in sorted(counts.items(), key=lambda c: -c[1]))
    parts = [
        "# Field map\n",
        "<!-- made by `gpusched review build`; edit the store in review/, not this page -->\n",
        f"Operations research for serving generative AI, as of {snapshot.date}: "
        f"{len(contents.papers)} papers in {len(snapshot.fronts)} fronts. "
        f"Every implemented paper was rerun by `gpusched reproduce`: {verdicts or 'no rerun yet'}. "
        "How the map is made, and what its figures mean: [the living review](review.md).\n"
        if (page.parent / "review.md").exists()
        else f"{len(contents.papers)} papers in {len(snapshot.fronts)} fronts, {snapshot.date}.\n",
        "## Recent\n",
        "\n".join(
            f"* {day}: " + "; ".join(_link(p) for p in papers) for day, papers in contents.recent()
        )
        + "\n",
        "## Fronts\n",
        f"![Papers by front and the ties between them]({picture})\n",
        "Dots grow with the scores, dashed rings are bridges, lines are ties of half a shared item "
        "or more.\n",
        "| front | status | papers | density |\n|---|---|---|---|\n"
        + "\n".join(
            f"| {f.front}: {text(contents.name(f.front))} | {f.status} | {len(f.papers)} | "
            f"{f.density:.2f} |"
            for f in snapshot.fronts
        )
        + "\n",
    ]
    for front in snapshot.fronts:
        papers = ", ".join(_link(contents.papers[a]) for a in front.papers)
        parts.append(
            f"### {text(contents.name(front.front))}\n\n"
            + (f"{text(contents.narrative(front))}\n\n" if contents.narrative(front) else "")
            + f"Papers: {papers}.\n\n"
            f"Methods of most papers: {_tags(front.methods)}. Problems: {_tags(front.problems)}. "
            f"Methods of no other front: {len(front.unique_methods)}; "
            f"shared with others: {_tags(front.shared_methods) or 'none'}.\n"
        )
    parts.append("## Bridges\n")
    parts.append(
        "Papers whose ties spread over several fronts, by participation coefficient.\n\n"
        "| paper | score | from | to | carries |\n|---|---|---|---|---|\n"
        + "\n".join(
            f"| {_link(contents.papers[b.arxiv])} | {b.score:.2f} | {text(contents.name(b.front))} "
            f"| {'; '.join(text(contents.name(f)) for f in b.joins)} | {(b.carries or 0):.0%} |"
            for b in snapshot.bridges
        )
        + "\n\n*Carries*: share of all ties between its front and the first of the others.\n"
        if snapshot.bridges
        else "None.\n"
    )
    if contents.published is not None:
        lines = contents.differences
        parts.append(f"## Against the snapshot of {contents.published.date}\n")
        parts.append(
            (
                "Found from the same papers, the map differs from the one published that day in:\n\n"
                + "\n".join(f"* {text(line)}" for line in lines)
                if lines
                else "The map is the one published that day."
            )
            + "\n"
        )
    parts.append("## Papers\n")
    for paper in sorted(contents.papers.values(), key=lambda p: (p.day, p.arxiv), reverse=True):
        parts.append(_entry(contents, paper, root, page))
    return "\n".join(parts)


def _entry(contents: Contents, paper: Paper, root: Path, page: Path) -> str:
    front = contents.field.front_of(paper.arxiv)
    lines = [f'<a id="{_anchor(paper)}"></a>\n\n### {text(plain_title(paper))}\n']
    facts = [f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})", f"{paper.updated}"]
    if paper.affiliations:
        facts.append(text(", ".join(paper.affiliations)))
    facts.append(f"front: {text(contents.name(front))}")
    if paper.scores is not None:
        s = paper.scores
        facts.append(f"method {s.method}, practice {s.practice}, impact {s.impact}")
    if paper.flags:
        facts.append(", ".join(paper.flags))
    if paper.llm_role:
        facts.append(f"language models act as {_tags(paper.llm_role)}")
    lines.append(" · ".join(facts) + "\n")
    if paper.status == "withdrawn":
        lines.append(f"**Withdrawn on {paper.withdrawn}.**\n")
    if paper.newer is not None:
        lines.append(f"A newer version of {paper.newer.updated} is not described here yet.\n")
    if paper.takeaway:
        lines.append(text(paper.takeaway) + "\n")
    ours = []
    if paper.page is not None:
        ours.append(f"[our page]({_relative(root / paper.page, page)})")
    if paper.module is not None and (file := module_file(root, paper.module)) is not None:
        ours.append(f"[`{paper.module}`]({_relative(file, page)})")
    if ours:
        lines.append("Here: " + ", ".join(ours) + ".\n")
    if (rerun := contents.rerun(paper)) is not None:
        lines.append(_rerun(rerun))
    return "\n".join(lines)


def _rerun(rerun: Rerun) -> str:
    rows = "\n".join(
        f"| {text(c.claim)} | {text(f'{c.published} {c.unit}'.strip())} | "
        f"{text(f'{c.ours} {c.unit}'.strip())} | {HOLDS[c.holds]} |"
        for c in rerun.claims[:CLAIMS]
    )
    more = len(rerun.claims) - CLAIMS
    rest = f"\n\nand {more} more: `gpusched reproduce {rerun.name}`" if more > 0 else ""
    return (
        f"**{rerun.verdict}**: {rerun.holding} of {rerun.judged} claims hold.\n\n"
        f"| claim | published | ours | holds |\n|---|---|---|---|\n{rows}{rest}\n"
    )


def text(value: str) -> str:
    """Return words as Markdown shows them: no markup, no HTML, no end of a table cell."""
    value = re.sub(r"([\\`*_\[\]$|#~^{}])", r"\\\1", value)
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _anchor(paper: Paper) -> str:
    return "paper-" + re.sub(r"[^a-z0-9]+", "-", paper.arxiv.lower())


def _link(paper: Paper) -> str:
    return f"[{text(short_name(paper))}](#{_anchor(paper)})"


def _tags(tags: tuple[str, ...]) -> str:
    return ", ".join(tag.replace("_", " ") for tag in tags)


def _relative(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()
