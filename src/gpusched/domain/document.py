"""Reading of YAML and JSON documents with errors that a user can act on."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from gpusched.errors import InputError

MAX_BYTES = 64 * 1024 * 1024


class Section(BaseModel):
    """A part of a document: immutable, with no unknown keys, infinities or nans."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


SectionT = TypeVar("SectionT", bound=Section)


def load_document(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file.

    Raises:
        InputError: the file cannot be read, is not YAML or JSON, or is not a mapping.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than 64 MB; this is not a spec or a plan")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; expected YAML or JSON in UTF-8") from None
    return parse_document(text, str(path))


def parse_document(text: str, origin: str) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON text.

    Raises:
        InputError: the text is not YAML or JSON, or is not a mapping.
    """
    try:
        values = json.loads(text) if text.lstrip()[:1] == "{" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed text"
        raise InputError(f"{origin}{where}: not valid YAML ({problem})") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise InputError(f"{origin}: not valid YAML or JSON ({error})") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        raise InputError(
            f"{origin}: expected keys and values at the top, such as "
            f"'model: llama-3.1-8b'; got {got}"
        )
    return values


def validate(section: type[SectionT], values: Mapping[str, Any], origin: str) -> SectionT:
    """Return the section that ``values`` describe.

    Raises:
        InputError: one line for each problem: origin, field, what is wrong, what would be right.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(section, problem) for problem in error.errors())
        lines = {line: None for line in lines if "after validation" not in line} or lines
        raise InputError("\n".join(f"{origin}: {line}" for line in lines)) from None
    except RecursionError:
        raise InputError(f"{origin}: nested too deeply") from None


def absolute_path(value: str, folder: Path) -> str:
    """Return a path as seen from the folder of the document that names it."""
    return str(Path(os.path.abspath(folder / Path(value).expanduser())))


def _explain(section: type[Section], problem: Mapping[str, Any]) -> str:
    *outer, last = problem["loc"] or ("",)
    location = [*(part for part in outer if not _is_tag(part)), last]
    field = ".".join(str(part) for part in location).replace("slo.classes.default", "slo")
    field = field or "the document"
    got = _shorten(problem.get("input"))
    match problem["type"]:
        case "missing":
            return f"{field}: is missing; it is required"
        case "extra_forbidden":
            known = sorted(_fields_at(section, problem["loc"][:-1]))
            near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(known)}"
            return f"{field}: unknown key; {hint}"
        case "value_error":
            return f"{field}: {problem['ctx']['error']}"
        case "literal_error":
            expected = str(problem["ctx"]["expected"]).replace("'", "")
            near = get_close_matches(
                str(problem.get("input")), expected.replace(" or ", ", ").split(", "), n=1
            )
            hint = f" (did you mean {near[0]}?)" if near else ""
            return f"{field}: must be {expected}, got {got}{hint}"
        case _:
            message = str(problem["msg"])
            message = message.replace("Input should be", "must be").replace("Value error, ", "")
            return f"{field}: {message[0].lower() + message[1:]}, got {got}"


def _fields_at(section: Any, location: Sequence[str | int]) -> Iterator[str]:
    """Yield the keys allowed where ``location`` points to."""
    sections = [section]
    for part in location:
        if isinstance(part, str) and not _is_tag(part):
            sections = [
                inner
                for outer in sections
                if part in outer.model_fields
                for inner in _sections_in(outer.model_fields[part].annotation)
            ] or sections
    for inner in sections:
        yield from inner.model_fields


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections_in(argument)


def _is_tag(part: str | int) -> bool:
    """Tell whether part of an error's location names a union member instead of a field."""
    return isinstance(part, str) and (part[:1].isupper() or "[" in part)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
