"""``gpusched review update``."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gpusched.cli.review.options import STORE, AsJson, StoreFolder, day


def update(
    store: StoreFolder = STORE,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of kept answers; cache in the store by default.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Work on kept answers, never ask the network.")
    ] = False,
    until: Annotated[str | None, typer.Option(help="YYYY-MM-DD; today by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask arXiv and OpenAlex for new papers, new versions and withdrawals.

    Example: gpusched review update

    Proposes candidates, most like the accepted papers first; 'gpusched review accept' takes them.
    """
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.review.store import load_store
    from gpusched.review.tables import show_candidates

    try:
        from gpusched.review.update import update as bring
    except ImportError as error:
        raise InputError(
            f"updates need the package {error.name}: pip install 'gpusched[review]'"
        ) from None
    loaded = load_store(store)
    today = day(until, "--until") or datetime.now(UTC).date()
    progress = Progress()
    done = bring(loaded, cache or store / "cache", today, offline=offline, progress=progress)
    progress.done()
    tally = done.tally
    proposed = [p for p in done.store.candidates if p.arxiv in tally.proposed]
    if as_json:
        document = {
            "since": str(done.since),
            "until": str(done.until),
            "entries": tally.seen,
            "proposed": [
                {
                    "arxiv": p.arxiv,
                    "title": p.title,
                    "similarity": p.similarity,
                    "nearest": p.nearest,
                }
                for p in proposed
            ],
            "newer": tally.newer,
            "withdrawn": tally.withdrawn,
            "unlike": len(tally.unlike),
            "without_id": tally.without_id,
            "skipped": tally.skipped,
            "waiting": len(done.store.candidates),
        }
        print(json.dumps(document))
        return
    if proposed:
        show_candidates(proposed)
    for kind, identifiers in (("new version", tally.newer), ("withdrawn", tally.withdrawn)):
        for identifier in identifiers:
            print(f"{kind}: {identifier} {done.store.paper(identifier).title}")
    for name in tally.skipped:
        print(f"skipped: {name}, no kept answer")
    print(
        f"{done.since} to {done.until}: {tally.seen} entries, {len(proposed)} proposed, "
        f"{len(tally.unlike)} unlike the field, {tally.without_id} not on arXiv; "
        f"{len(done.store.candidates)} candidates wait"
    )
