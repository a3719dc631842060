"""``gpusched review accept`` and ``reject``: a human's word on a paper."""

import json
from datetime import date
from typing import Annotated

import typer

from gpusched.cli.review.options import STORE, AsJson, StoreFolder

Identifier = Annotated[str, typer.Argument(metavar="ID", help="arXiv id, such as 2602.14516.")]
Mark = typer.Option(min=1, max=10, help="From 1 to 10, by rubric.md.")
Tags = typer.Option(metavar="A,B", help="Tags, separated by commas.")


def accept(
    identifier: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="arXiv id, such as 2602.14516.")
    ] = None,
    method: Annotated[int | None, Mark] = None,
    practice: Annotated[int | None, Mark] = None,
    impact: Annotated[int | None, Mark] = None,
    takeaway: Annotated[
        str | None, typer.Option(help="What it means for this product, in your words.")
    ] = None,
    methods: Annotated[str | None, Tags] = None,
    problems: Annotated[str | None, Tags] = None,
    flags: Annotated[
        str | None, typer.Option(help="Of must-read, changes-thinking, discuss.")
    ] = None,
    llm_role: Annotated[str | None, Tags] = None,
    module: Annotated[str | None, typer.Option(help="Where we implement it.")] = None,
    page: Annotated[str | None, typer.Option(help="Our page about it.")] = None,
    reproduce: Annotated[str | None, typer.Option(help="Its name in 'gpusched reproduce'.")] = None,
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Accept a candidate, or change what an accepted paper's record says.

    Example: gpusched review accept 2602.14516 --method 7 --practice 9 --impact 7 --methods milp --problems gpu_scheduling --takeaway "..."

    Without an id, the candidates are listed, most like the accepted papers first.
    """
    from gpusched.errors import InputError
    from gpusched.review.decide import accept as accept_paper
    from gpusched.review.store import load_store
    from gpusched.review.tables import show_candidates

    loaded = load_store(store)
    if identifier is None:
        if as_json:
            waiting = [p.model_dump(mode="json", exclude_none=True) for p in loaded.candidates]
            print(json.dumps(waiting))
        else:
            show_candidates(loaded.candidates)
        return
    marks = {"method": method, "practice": practice, "impact": impact}
    held = loaded.paper(identifier).scores
    scores = {k: v if v is not None else getattr(held, k, None) for k, v in marks.items()}
    missing = [f"--{name}" for name, value in scores.items() if value is None]
    if missing:
        raise InputError(f"{identifier}: give {', '.join(missing)}, from 1 to 10 by rubric.md")
    paper = accept_paper(
        loaded,
        identifier,
        date.today(),
        scores=scores,
        takeaway=takeaway,
        methods=_split(methods),
        problems=_split(problems),
        flags=_split(flags),
        llm_role=_split(llm_role),
        module=module,
        page=page,
        reproduce=reproduce,
    )
    if as_json:
        print(json.dumps(paper.model_dump(mode="json", exclude_none=True)))
    else:
        print(f"accepted {paper.arxiv}: {paper.title}")


def reject(
    identifier: Identifier,
    note: Annotated[str | None, typer.Option(help="Why.")] = None,
    store: StoreFolder = STORE,
) -> None:
    """Reject a candidate; it is not proposed again.

    Example: gpusched review reject 2603.01234 --note "training only"
    """
    from gpusched.review.decide import reject as reject_paper
    from gpusched.review.store import load_store

    paper = reject_paper(load_store(store), identifier, note)
    print(f"rejected {paper.arxiv}: {paper.title}")


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
