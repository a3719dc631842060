"""The fronts on a day, as a file of the store keeps them."""

from datetime import date
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, field_validator

from gpusched.domain.document import Section, parse_document, validate
from gpusched.errors import InputError
from gpusched.review.files import read_text, write_text
from gpusched.review.paper import ArxivId, Tag

FrontStatus = Literal["emerging", "growing", "stable", "declining"]


class FrontRecord(Section):
    """A front on a day."""

    front: int = Field(ge=0)
    status: FrontStatus
    density: float = Field(ge=0, le=1)
    papers: tuple[ArxivId, ...] = Field(min_length=1)
    methods: tuple[Tag, ...] = ()
    """The most frequent ones."""
    problems: tuple[Tag, ...] = ()
    """The most frequent ones."""
    unique_methods: tuple[Tag, ...] = ()
    """Of no other front."""
    shared_methods: tuple[Tag, ...] = ()


class BridgeRecord(Section):
    """A paper between fronts on a day."""

    arxiv: ArxivId
    score: float = Field(ge=0, le=1)
    front: int
    joins: tuple[int, ...]
    carries: float | None = Field(default=None, ge=0, le=1)


class Snapshot(Section):
    """All fronts on a day."""

    date: date
    origin: Literal["published", "computed"]
    """Facts of others, or found by ``gpusched review fronts``."""
    seed: int | None = None
    fronts: tuple[FrontRecord, ...]
    bridges: tuple[BridgeRecord, ...] = ()

    @field_validator("fronts")
    @classmethod
    def _once(cls, fronts: tuple[FrontRecord, ...]) -> tuple[FrontRecord, ...]:
        numbers = [str(front.front) for front in fronts]
        papers = [paper for front in fronts for paper in front.papers]
        for kind, values in (("front", numbers), ("paper", papers)):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{kind} {value} is listed twice")
        return fronts

    @property
    def members(self) -> dict[int, frozenset[str]]:
        """Papers of each front."""
        return {front.front: frozenset(front.papers) for front in self.fronts}


def load_snapshots(folder: Path) -> tuple[Snapshot, ...]:
    """Return the snapshots of a store, oldest first.

    Raises:
        InputError: a file is wrong; names file and field.
    """
    found = []
    for path in sorted((folder / "snapshots").glob("*.yaml")):
        values = parse_document(read_text(path), str(path))
        snapshot = validate(Snapshot, values, str(path))
        if path.stem != snapshot.date.isoformat():
            raise InputError(f"{path}: holds the snapshot of {snapshot.date}; rename the file")
        found.append(snapshot)
    return tuple(found)


def save_snapshot(folder: Path, snapshot: Snapshot) -> Path:
    """Write a snapshot and return its file; facts published by others are never replaced.

    Raises:
        InputError: the day has a published snapshot, or the file cannot be written.
    """
    path = folder / "snapshots" / f"{snapshot.date}.yaml"
    if any(
        old.date == snapshot.date and old.origin == "published" for old in load_snapshots(folder)
    ):
        raise InputError(
            f"{path}: that day's snapshot was published by others and is kept; choose --as-of"
        )
    values = snapshot.model_dump(mode="json", exclude_none=True)
    values["date"] = snapshot.date
    write_text(path, yaml.safe_dump(values, sort_keys=False, width=1_000_000))
    return path
