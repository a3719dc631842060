"""YAML lists of records, kept so that a change of one record is a change of its lines only."""

import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import yaml

from gpusched.domain.document import Section, validate
from gpusched.errors import InputError

SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True)
class Records(Generic[SectionT]):
    """What a file of records holds."""

    records: tuple[SectionT, ...]
    header: str
    """Comments above the first record."""
    texts: tuple[str, ...]
    """Each record as it is written, comments included; shape (records,)."""


def parse_records(text: str, section: type[SectionT], key: str, origin: str) -> Records[SectionT]:
    """Return the records of a YAML list.

    Args:
        text: of the file.
        section: what each record must be.
        key: field that tells records apart.
        origin: name of the file, for messages.

    Raises:
        InputError: names the record, its line and the field that is wrong, and what would be right.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Records((), text, ())
        if not isinstance(node, yaml.SequenceNode):
            raise InputError(f"{origin}: expected a list of records, each starting with '- {key}:'")
        rows = [(item, loader.construct_object(item, deep=True)) for item in node.value]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed text"
        raise InputError(f"{origin}{where}: not valid YAML ({problem})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin}: not valid YAML ({error})") from None
    finally:
        loader.dispose()
    records: list[SectionT] = []
    lines: dict[str, int] = {}
    for item, values in rows:
        line = item.start_mark.line + 1
        where = f"{origin}, line {line}"
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise InputError(f"{where}: expected a record of keys and values")
        named = f"{where}, record {values.get(key)!r}"
        _once_each(item, named)
        name = str(values.get(key))
        if name in lines:
            raise InputError(
                f"{where}: {key} {name!r} is listed twice, first in line {lines[name]}"
            )
        lines[name] = line
        try:
            records.append(validate(section, values, named))
        except InputError as error:
            raise InputError(str(error).replace(": the document: ", ": ")) from None
    header, texts = _blocks(text)
    if len(texts) != len(records):
        texts = [render_record(record) for record in records]
    return Records(tuple(records), header, tuple(texts))


def render_records(old: Records[SectionT], records: list[SectionT], key: str) -> str:
    """Return the file's new text: unchanged records keep their words and comments."""
    written = {getattr(r, key): (r, t) for r, t in zip(old.records, old.texts, strict=True)}
    parts = []
    for record in sorted(records, key=lambda r: str(getattr(r, key))):
        before = written.get(getattr(record, key))
        if before is not None and before[0] == record:
            parts.append(before[1])
        else:
            comments = re.match(r"((#.*)?\n)*", before[1]) if before else None
            parts.append((comments[0] if comments else "") + render_record(record))
    return old.header + "".join(parts)


def render_record(record: Section) -> str:
    """Return a record as YAML: keys in their declared order, what is not known left out."""
    return yaml.safe_dump(
        [without_empty(record.model_dump(mode="python"))],
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=1_000_000,
    )


def without_empty(value: Any) -> Any:
    """Return values as lists and mappings, without what is None or an empty list."""
    if isinstance(value, dict):
        return {k: without_empty(v) for k, v in value.items() if v not in (None, (), [])}
    return [without_empty(v) for v in value] if isinstance(value, tuple | list) else value


def _once_each(node: yaml.Node, where: str) -> None:
    """Refuse a key that is given twice, which YAML readers let pass silently."""
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for name, value in node.value:
            if name.value in names:
                line = name.start_mark.line + 1
                raise InputError(f"{where}: {name.value} is given twice, again in line {line}")
            names.add(name.value)
            _once_each(value, where)


def _blocks(text: str) -> tuple[str, list[str]]:
    """Split a text at its top-level dashes; comments right above a dash belong to it."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    starts = [i for i, line in enumerate(lines) if line.startswith("- ")]
    begins = []
    for i, start in enumerate(starts):
        low = starts[i - 1] + 1 if i else 0
        while start > low and lines[start - 1].startswith("#"):
            start -= 1
        begins.append(start if i else starts[0])
    ends = [*begins[1:], len(lines)]
    header = "".join(lines[: begins[0]]) if begins else text
    return header, ["".join(lines[a:b]) for a, b in zip(begins, ends, strict=True)]
