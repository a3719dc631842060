"""``gpusched review fronts``."""

import json
from typing import Annotated

import typer

from gpusched.cli.review.options import STORE, AsJson, Seed, StoreFolder, day


def fronts(
    store: StoreFolder = STORE,
    as_of: Annotated[
        str | None, typer.Option(help="YYYY-MM-DD; leave out papers submitted later.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the result as a snapshot.")] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find research fronts and the papers that bridge them.

    Example: gpusched review fronts --json
    """
    from gpusched.review.contents import gather
    from gpusched.review.snapshot import save_snapshot
    from gpusched.review.store import load_store
    from gpusched.review.tables import show_fronts

    contents = gather(load_store(store), seed, day(as_of, "--as-of"))
    snapshot = contents.field.snapshot
    if save:
        save_snapshot(store, snapshot)
    if not as_json:
        show_fronts(contents)
        return
    found = contents.field.communities
    document = snapshot.model_dump(mode="json")
    for front in document["fronts"]:
        front["name"] = contents.name(front["front"])
    document |= {
        "modularity": round(found.modularity, 4),
        "runs": found.runs,
        "runs_agreeing": found.agreeing,
        "compared_with": str(contents.published.date) if contents.published else None,
        "differences": contents.differences,
    }
    print(json.dumps(document, allow_nan=False))
