"""Options that several commands of ``gpusched review`` share."""

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from gpusched.errors import InputError

StoreFolder = Annotated[Path, typer.Option("--store", help="Folder of the review.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the search for fronts.")]
Site = Annotated[Path, typer.Option(help="Folder of the site.")]

STORE = Path("review")
SITE = Path("build/review")
MARKDOWN = Path("docs/field-map.md")


def day(text: str | None, option: str) -> date | None:
    """Return a day given as YYYY-MM-DD.

    Raises:
        InputError: it is no day.
    """
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is no day; write YYYY-MM-DD") from None
