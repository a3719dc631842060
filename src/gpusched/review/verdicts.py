"""What reruns of the papers gave: documents of ``gpusched reproduce NAME --json``, one a file."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from gpusched.domain.document import Section, validate
from gpusched.errors import InputError, unknown_name
from gpusched.reproduce.claim import Claim, Reproduction, Verdict
from gpusched.reproduce.registry import PAPERS
from gpusched.review.files import read_text, write_text


class ClaimRecord(Section):
    """A published figure and ours."""

    claim: str
    published: str
    ours: str
    unit: str
    holds: bool | None
    differences: str = ""


class Rerun(Section):
    """A paper's experiment as we reran it."""

    name: str
    title: str
    arxiv: str
    seconds: float = Field(ge=0)
    run_on: date | None = None
    verdict: Verdict
    claims: tuple[ClaimRecord, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Rerun":
        if self.name not in PAPERS:
            raise ValueError(unknown_name("paper", self.name, PAPERS))
        claims = tuple(Claim(**claim.model_dump()) for claim in self.claims)
        follows = Reproduction(claims).verdict
        if follows != self.verdict:
            raise ValueError(f"verdict: {self.verdict!r}, but its claims give {follows!r}")
        return self

    @property
    def holding(self) -> int:
        """Claims that hold."""
        return sum(claim.holds is True for claim in self.claims)

    @property
    def judged(self) -> int:
        """Claims that could be tested."""
        return sum(claim.holds is not None for claim in self.claims)


def load_reruns(folder: Path) -> dict[str, Rerun]:
    """Return the reruns that a store holds, by name.

    Raises:
        InputError: a file is wrong; names file and field.
    """
    found = {}
    for path in sorted((folder / "verdicts").glob("*.json")):
        rerun = parse_rerun(_json(path), str(path))
        if path.stem != rerun.name:
            raise InputError(f"{path}: holds the rerun of {rerun.name}; rename the file")
        found[rerun.name] = rerun
    return found


def read_documents(path: Path) -> list[Rerun]:
    """Return the reruns in a file that ``gpusched reproduce ... --json`` wrote.

    Raises:
        InputError: the file is no such document.
    """
    values = _json(path)
    return [parse_rerun(v, str(path)) for v in (values if isinstance(values, list) else [values])]


def parse_rerun(values: Any, origin: str) -> Rerun:
    """Return a rerun from its document.

    Raises:
        InputError: a field is wrong, or the verdict does not follow from the claims.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{origin}: expected a document of 'gpusched reproduce NAME --json'")
    return validate(Rerun, values, origin)


def save_rerun(folder: Path, rerun: Rerun) -> Path:
    """Write a rerun to the store and return its file.

    Raises:
        InputError: the file cannot be written.
    """
    path = folder / "verdicts" / f"{rerun.name}.json"
    values = rerun.model_dump(mode="json", exclude_none=False)
    if rerun.run_on is None:
        del values["run_on"]
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return path


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
