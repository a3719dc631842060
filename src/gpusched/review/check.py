"""Whether a review keeps its promises."""

from gpusched.reproduce.registry import PAPERS
from gpusched.review.contents import Contents
from gpusched.review.links import dead_links
from gpusched.review.store import Store


def shortcomings(store: Store, contents: Contents) -> list[str]:
    """Return what a review owes, a line each; empty where nothing.

    An implemented paper owes a verdict, a rerun a paper, a front a narrative, and every link into
    the repository a target.
    """
    lines = []
    for paper in contents.papers.values():
        if paper.module is not None and paper.reproduce is None:
            lines.append(f"{paper.arxiv}: implemented in {paper.module}, but names no rerun")
        if paper.reproduce is not None and paper.reproduce not in contents.reruns:
            lines.append(
                f"{paper.arxiv}: no verdict of {paper.reproduce}; "
                f"run 'gpusched review verdicts {paper.reproduce}'"
            )
    listed = {paper.reproduce for paper in contents.papers.values()}
    lines += [
        f"{known.arxiv}: 'gpusched reproduce {name}' exists, but no accepted paper names it"
        for name, known in PAPERS.items()
        if known.arxiv and name not in listed
    ]
    lines += [
        f"front {front.front}: no narrative in fronts.yaml"
        for front in contents.field.snapshot.fronts
        if not contents.narrative(front)
    ]
    return lines + dead_links(store.root, tuple(contents.papers.values()))
