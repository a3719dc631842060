"""Logs of answers that models gave to prompts, as rates of distinct answers."""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.sampling.answers import AnswerFormat, normalise

PROMPT_KEYS = ("prompt", "problem", "prompt_id", "id")
TRUE = ("true", "1", "yes")
READ = "JSON Lines, CSV or parquet"


@dataclass(frozen=True, slots=True)
class PromptAnswers:
    """What was answered to one prompt. Arrays of shape (distinct answers,)."""

    prompt: str
    answers: tuple[str | None, ...]
    """None stands for completions without an answer."""
    counts: NDArray[np.int64]
    tokens: NDArray[np.float64]
    """Mean completion tokens of the samples that gave the answer; nan where unknown."""
    gold: int
    """Position of the right answer; -1 where nobody gave it, -2 where it is unknown."""


def read_answer_log(
    path: Path, *, only: Mapping[str, str] | None = None, answer: AnswerFormat | None = None
) -> list[PromptAnswers]:
    """Read a log: JSON Lines, CSV or parquet, each perhaps with ``.gz``.

    One row a sample, ``prompt`` and ``answer`` (or ``response``, from which ``answer`` is
    extracted), or one a distinct answer with ``count``, or, in JSON Lines, one a prompt with
    ``answers`` (or ``responses``), a list. Optional: ``gold`` (the right answer) or ``is_gold``,
    ``tokens`` (or ``gen_len_mean``; a list beside ``answers``). ``problem`` or ``id`` is read for
    ``prompt``. ``only`` keeps rows whose columns have these values.

    Raises:
        InputError: the file cannot be read, lacks a column, or holds no answers.
    """
    groups: dict[str, list[tuple[str | None, int, float, str | None]]] = {}
    columns: set[str] = set()
    kept = 0
    for number, row in enumerate(_rows(path), 1):
        columns |= row.keys()
        if only and any(str(row.get(key)) != value for key, value in only.items()):
            continue
        kept += 1
        where = f"{path}, row {number}"
        name = next((str(row[key]) for key in PROMPT_KEYS if row.get(key) is not None), None)
        if name is None:
            raise InputError(f"{where}: no prompt; expected a column {' or '.join(PROMPT_KEYS)}")
        groups.setdefault(name, []).extend(_samples(row, answer, where))
    if not kept:
        unknown = sorted(set(only or ()) - columns)
        hint = f"no column {', '.join(unknown)}" if unknown else "no rows match"
        raise InputError(f"{path}: {hint}" if columns else f"{path}: holds no rows")
    prompts = [_prompt(name, samples, path) for name, samples in groups.items()]
    if not any(prompt.counts.sum() for prompt in prompts):
        raise InputError(f"{path}: holds no answers")
    return [prompt for prompt in prompts if prompt.counts.sum()]


def _samples(
    row: Mapping[str, Any], form: AnswerFormat | None, where: str
) -> Iterator[tuple[str | None, int, float, str | None]]:
    """Yield answer, count, tokens and the right answer of a row."""
    raw, listed = next(
        ((key, key.endswith("s")) for key in ("answer", "response", "answers", "responses")
         if key in row), (None, False),
    )  # fmt: skip
    if raw is None:
        raise InputError(f"{where}: expected answer, response, answers or responses")
    values = row[raw] if listed else [row[raw]]
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{where}: {raw} must be a list, got {values!r}")
    values = list(values)
    tokens = row.get("tokens", row.get("gen_len_mean"))
    each = (
        list(tokens) if isinstance(tokens, Sequence) and not isinstance(tokens, str)
        else [tokens] * len(values)
    )  # fmt: skip
    if len(each) != len(values):
        raise InputError(f"{where}: {len(values)} answers but {len(each)} tokens")
    gold = row.get("gold")
    gold = normalise(str(gold)) if gold not in (None, "") else None
    marked = str(row["is_gold"]).lower() in TRUE if row.get("is_gold") is not None else None
    for value, used in zip(values, each, strict=True):
        text = None if value is None or value == "" else str(value)
        if text is not None:
            if raw.startswith("response"):
                text = (form or AnswerFormat()).extract({"content": text})
            elif "count" not in row:
                text = normalise(text)
        right = text if marked else ("" if marked is False and gold is None else gold)
        yield text, _number(row.get("count", 1), f"{where}: count"), _tokens(used, where), right


def _number(value: Any, where: str) -> int:
    try:
        count = int(value)
        if count < 0 or count != float(value):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{where} must be a whole number, got {value!r}") from None
    return count


def _tokens(value: Any, where: str) -> float:
    try:
        return float("nan") if value in (None, "") else float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: tokens must be a number, got {value!r}") from None


def _prompt(
    name: str, samples: Sequence[tuple[str | None, int, float, str | None]], path: Path
) -> PromptAnswers:
    """Gather a prompt's samples; "" as right answer: known, but not among those given."""
    counts: dict[str | None, int] = {}
    tokens: dict[str | None, float] = {}
    golds = {right for *_, right in samples if right}
    known = any(right is not None for *_, right in samples)
    if len(golds) > 1:
        raise InputError(
            f"{path}: prompt {name} has several right answers: {', '.join(sorted(golds))}; keep one "
            "data set's rows (--where COLUMN=VALUE) or give prompts names of their own"
        )
    for text, count, used, _ in samples:
        counts[text] = counts.get(text, 0) + count
        tokens[text] = tokens.get(text, 0.0) + count * used
    answers = tuple(text for text, count in counts.items() if count)
    gold = next(iter(golds), None)
    position = answers.index(gold) if gold in answers else (-1 if known else -2)
    return PromptAnswers(
        name,
        answers,
        np.array([counts[text] for text in answers], np.int64),
        np.array([tokens[text] / counts[text] for text in answers]),
        position,
    )


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    kind = suffix.removesuffix(".gz")
    try:
        if kind == ".parquet":
            import pyarrow.parquet as pq

            yield from pq.read_table(path).to_pylist()
            return
        if kind not in (".jsonl", ".ndjson", ".csv"):
            raise InputError(f"{path}: expected {READ}, by the file name's ending")
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            if kind == ".csv":
                yield from csv.DictReader(lines)
                return
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: expected an object")
                yield row
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{path}: not readable as {READ} ({error})") from None
