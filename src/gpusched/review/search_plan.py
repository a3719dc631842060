"""What an update asks for, and how far it got."""

import json
from datetime import date, timedelta
from pathlib import Path

from pydantic import Field

from gpusched.domain.document import Section, load_document, parse_document, validate
from gpusched.review.files import read_text, write_text
from gpusched.review.paper import Line


class SearchPlan(Section):
    """``search.yaml`` of a store."""

    since: date
    """First day of the first update."""
    overlap_days: int = Field(default=3, ge=0, le=60)
    """Days that an update looks back before the last one: indexes lag."""
    floor: float = Field(default=0.08, ge=0, le=1)
    """Least similarity to be proposed."""
    arxiv: tuple[Line, ...] = ()
    """Queries in arXiv's syntax."""
    openalex: tuple[Line, ...] = ()
    """Words to search for."""
    mail: Line | None = None
    """Address that OpenAlex may write to about too many requests."""


class UnderWay(Section):
    """An update that was not finished."""

    since: date
    until: date
    done: tuple[str, ...] = ()
    """Steps completed."""
    step: str | None = None
    at: str | None = None
    """Where the step goes on: an offset or a cursor."""


class Progressed(Section):
    """``state.json`` of a store."""

    harvested_since: date | None = None
    """Window of the last update that was finished."""
    harvested_until: date | None = None
    under_way: UnderWay | None = None


def load_plan(folder: Path) -> SearchPlan:
    """Return the plan of a store.

    Raises:
        InputError: it is missing or wrong; names the field.
    """
    path = folder / "search.yaml"
    return validate(SearchPlan, load_document(path), str(path))


def load_state(folder: Path) -> Progressed:
    """Return how far updates got; nowhere where nothing is written.

    Raises:
        InputError: the file is wrong.
    """
    path = folder / "state.json"
    if not path.exists():
        return Progressed()
    return validate(Progressed, parse_document(read_text(path), str(path)), str(path))


def save_state(folder: Path, state: Progressed) -> None:
    """Write how far updates got.

    Raises:
        InputError: the file cannot be written.
    """
    values = state.model_dump(mode="json", exclude_none=True)
    write_text(folder / "state.json", json.dumps(values, indent=1) + "\n")


def begin(plan: SearchPlan, state: Progressed, until: date, offline: bool) -> UnderWay:
    """Return the update to go on with, or a new one up to a day.

    Without network it is the last one again, whose answers may be kept.
    """
    if state.under_way is not None:
        return state.under_way
    if offline and state.harvested_since is not None and state.harvested_until is not None:
        return UnderWay(since=state.harvested_since, until=state.harvested_until)
    since = plan.since
    if state.harvested_until is not None:
        since = max(since, state.harvested_until - timedelta(days=plan.overlap_days))
    return UnderWay(since=min(since, until), until=until)
