"""``gpusched review summaries``."""

from pathlib import Path
from typing import Annotated

import typer

from gpusched.cli.review.options import STORE, StoreFolder


def summaries(
    identifiers: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Candidates; all without a draft by default."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="OpenAI-compatible, http://HOST/v1; GPUSCHED_REVIEW_ENDPOINT by default.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its model; GPUSCHED_REVIEW_MODEL by default.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of kept answers; cache in the store by default.")
    ] = None,
    store: StoreFolder = STORE,
) -> None:
    """Let a language model draft takeaways of candidates; a human's words replace them.

    Example: gpusched review summaries --endpoint http://127.0.0.1:8000/v1 --model qwen3-32b
    """
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.review.files import load_abstracts
    from gpusched.review.store import load_store
    from gpusched.review.summaries import endpoint, summarise

    where = endpoint(url, model)
    loaded = load_store(store)
    abstracts = load_abstracts(cache or store / "cache")
    chosen = (
        [loaded.paper(identifier) for identifier in identifiers]
        if identifiers
        else [p for p in loaded.candidates if p.draft is None and p.arxiv in abstracts]
    )
    for paper in chosen:
        if paper.status != "candidate":
            raise InputError(f"{paper.arxiv}: is {paper.status}; only candidates get a draft")
        if paper.arxiv not in abstracts:
            raise InputError(f"{paper.arxiv}: no abstract is kept; run 'gpusched review update'")
    progress = Progress()
    failed = []
    for i, paper in enumerate(chosen, 1):
        progress(f"{i} of {len(chosen)}: {paper.arxiv}")
        try:
            draft = summarise(paper, abstracts[paper.arxiv], where)
        except InputError as error:
            failed.append(str(error))
            continue
        loaded = loaded.replace(paper.model_copy(update={"draft": draft}))
        print(f"{paper.arxiv}: {draft.takeaway}")
    progress.done()
    if failed:
        raise InputError("\n".join(failed))
    print(f"{len(chosen)} drafts by {where.model}")
