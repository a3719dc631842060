"""``gpusched review build``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gpusched.cli.review.options import MARKDOWN, SITE, STORE, AsJson, Seed, Site, StoreFolder


def build(
    store: StoreFolder = STORE,
    markdown: Annotated[Path, typer.Option(help="The page to write.")] = MARKDOWN,
    site: Site = SITE,
    address: Annotated[
        str, typer.Option(help="Where the site will stand, for its feed.")
    ] = "http://127.0.0.1:8000/",
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Write nothing; fail where a verdict is missing, a link is dead or the page old.",
        ),
    ] = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Make the review: a Markdown page and a static site.

    Example: gpusched review build --site out/review
    """
    from gpusched.errors import InputError
    from gpusched.review.build import build as write
    from gpusched.review.build import check as look
    from gpusched.review.store import load_store

    loaded = load_store(store)
    done = look(loaded, markdown, seed) if check else write(loaded, markdown, site, address, seed)
    if check and done.shortcomings:
        raise InputError("\n".join(done.shortcomings))
    contents = done.contents
    document = {
        "papers": len(contents.papers),
        "fronts": len(contents.field.snapshot.fronts),
        "verdicts": {name: rerun.verdict for name, rerun in contents.reruns.items()},
        "files": [str(path) for path in done.files],
        "shortcomings": list(done.shortcomings),
    }
    if as_json:
        print(json.dumps(document))
        return
    print(
        f"{document['papers']} papers in {document['fronts']} fronts, "
        f"{len(contents.reruns)} verdicts"
        + (": in order" if check else f": {markdown}, {site / 'index.html'}")
    )
    for line in done.shortcomings:
        typer.echo(f"warning: {line}", err=True)
