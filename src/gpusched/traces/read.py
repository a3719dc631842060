"""Read traces: the published formats, plain CSV, JSON lines and parquet, and a gateway's log."""

import gzip
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpusched.errors import InputError, unknown_name
from gpusched.traces.trace import Prefixes, Trace

MAX_TOKENS = 100_000_000
MOONCAKE_BLOCK_TOKENS = 512
AGENT_BLOCK_TOKENS = 64

ARRIVAL = ("arrival_s", "t_s", "time_s", "TIMESTAMP", "Timestamp", "timestamp", "arrived_at")
PROMPT = (
    "prompt_tokens",
    "input_tokens",
    "ContextTokens",
    "Request tokens",
    "input_length",
    "num_prefill_tokens",
)
OUTPUT = (
    "output_tokens",
    "GeneratedTokens",
    "Response tokens",
    "output_length",
    "num_decode_tokens",
)
FORMATS = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens (CSV)",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,... (CSV)",
    "mooncake": '{"timestamp": ms, "input_length", "output_length", "hash_ids"} (JSON lines)',
    "gpusched": "arrival_s, prompt_tokens, output_tokens, ... (parquet, CSV, JSON lines)",
}


def read_trace(
    path: str | Path,
    *,
    format: str | None = None,
    rate_rps: float | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Trace:
    """Return the trace in a file; its format is told from the columns.

    Understands Azure LLM inference traces (2023, 2024), BurstGPT, Mooncake with prefix hashes, and
    any parquet, CSV or JSON-lines file with prompt and output lengths; gzip is accepted. Files
    without arrival times need ``rate_rps``: Poisson arrivals are then drawn with ``seed``. Rows
    with zero tokens are dropped, unsorted ones sorted; ``Trace.notes`` says so.

    Raises:
        InputError: the file is missing, empty or malformed; names the row and column.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise InputError(unknown_name("trace format", format, FORMATS))
    table = load_table(path)
    if table.num_rows == 0:
        raise InputError(f"{path}: the trace is empty; it needs at least one request")
    try:
        names = table.column_names
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; expected CSV, JSON lines or parquet") from None
    prompt_name, output_name = _pick(names, PROMPT), _pick(names, OUTPUT)
    if prompt_name is None or output_name is None:
        formats = "; ".join(f"{name}: {columns}" for name, columns in FORMATS.items())
        raise InputError(
            f"{path}: no column of {'prompt' if prompt_name is None else 'output'} tokens among "
            f"{', '.join(names[:12])}. Formats read: {formats}"
        )
    if format is not None and (told := _format_of(names)) != format:
        raise InputError(f"{path}: the columns are those of the {told} format, not of {format}")
    prompt = _tokens(path, table, prompt_name)
    output = _tokens(path, table, output_name)
    notes: list[str] = []
    keep = (prompt > 0) & (output > 0)
    if "segment" in names:
        keep &= _longest_segment(_numbers(path, table, "segment"), notes)
    if dropped := int((~((prompt > 0) & (output > 0))).sum()):
        notes.append(f"{dropped} rows without prompt or output tokens left out")
    rows = np.flatnonzero(keep)
    if limit is not None:
        rows = rows[:limit]
    if not len(rows):
        raise InputError(f"{path}: no row has both prompt and output tokens")
    table = table.take(pa.array(rows))
    prompt_tokens, output_tokens = prompt[rows].astype(np.int32), output[rows].astype(np.int32)
    session, rounds, think = _sessions(path, table)
    arrival = _arrivals(path, table)
    if session is not None and think is not None and "arrival_s" not in names:
        arrival = None
    if arrival is None:
        arrival = _drawn_arrivals(path, len(rows), session, rate_rps, seed)
        notes.append(f"arrivals drawn as a Poisson process of {rate_rps:g} requests a second")
    classes, class_names = _classes(table)
    trace = Trace(
        arrival_s=arrival - arrival.min(),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        session_id=session,
        round=rounds,
        think_s=think,
        class_id=classes,
        class_names=class_names,
        prefix=_prefixes(path, table, prompt_tokens, session),
        stored_tokens=_stored(path, table),
        name=path.name.split(".")[0],
    )
    order = np.argsort(trace.arrival_s, kind="stable")
    if (np.diff(order) != 1).any():
        if session is None:
            notes.append("arrivals were not in order of time; sorted")
        trace = trace.take(order)
    return trace.with_notes(*notes)


def _stored(path: Path, table: pa.Table) -> NDArray[np.int32] | None:
    if "stored_tokens" not in table.column_names:
        return None
    return _tokens(path, table, "stored_tokens").astype(np.int32)


def load_table(path: Path) -> pa.Table:
    """Return the table in a parquet, CSV or JSON-lines file, gzipped or not.

    Raises:
        InputError: the file cannot be read or is malformed.
    """
    try:
        head = _open(path, 4096)
        if head[:4] == b"PAR1":
            return pq.read_table(path)
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the trace ({error.strerror or error})") from None
    except (pa.ArrowException, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a readable file ({_first_line(error)})") from None
    try:
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: damaged gzip file ({error})") from None
    if not data.strip():
        raise InputError(f"{path}: the file is empty; a trace needs at least one request")
    try:
        if data.lstrip()[:1] in (b"{", b"["):
            return pa_json.read_json(io.BytesIO(data))
        return pa_csv.read_csv(io.BytesIO(data))
    except (pa.ArrowException, UnicodeDecodeError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: malformed ({_first_line(error)}); expected CSV with a header line, JSON lines "
            "or parquet"
        ) from None


def _open(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _pick(names: list[str], candidates: tuple[str, ...]) -> str | None:
    return next((name for name in candidates if name in names), None)


def _format_of(names: list[str]) -> str:
    if "ContextTokens" in names:
        return "azure"
    if "Request tokens" in names:
        return "burstgpt"
    return "mooncake" if "input_length" in names else "gpusched"


def _numbers(path: Path, table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column as floats; complain about the first row that is not a finite number."""
    column = table.column(name)
    if pa.types.is_nested(column.type):
        raise InputError(f"{path}: column {name!r}: expected numbers, got {column.type}")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError):
        values = np.array([_as_float(value) for value in column.to_pylist()])
    values = np.asarray(values, np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"{path}: row {row + 1}, column {name!r}: expected a number, "
            f"got {table.column(name)[row].as_py()!r}"
        )
    return values


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _tokens(path: Path, table: pa.Table, name: str) -> NDArray[np.float64]:
    values = _numbers(path, table, name)
    bad = np.flatnonzero((values < 0) | (values > MAX_TOKENS))
    if len(bad):
        row = int(bad[0])
        raise InputError(
            f"{path}: row {row + 1}, column {name!r}: token counts lie between 0 and "
            f"{MAX_TOKENS:.0e}, got {values[row]:g}"
        )
    return np.floor(values)


def _longest_segment(segment: NDArray[np.float64], notes: list[str]) -> NDArray[np.bool_]:
    values, counts = np.unique(segment, return_counts=True)
    if len(values) > 1:
        notes.append(
            f"the trace has a gap; kept segment {values[counts.argmax()]:g} with "
            f"{counts.max()} of {counts.sum()} rows"
        )
    return np.asarray(segment == values[counts.argmax()])


def _arrivals(path: Path, table: pa.Table) -> NDArray[np.float64] | None:
    name = _pick(table.column_names, ARRIVAL)
    if name is None:
        return None
    column = table.column(name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _parse_dates(path, name, column)
    if pa.types.is_timestamp(column.type):
        if column.null_count:
            raise InputError(f"{path}: column {name!r} has rows without a time")
        nanoseconds = column.cast(pa.timestamp("ns", column.type.tz)).cast(pa.int64()).to_numpy()
        return np.asarray((nanoseconds - nanoseconds.min()) / 1e9)
    values = _numbers(path, table, name)
    if (np.abs(values) > 1e15).any():
        row = int(np.flatnonzero(np.abs(values) > 1e15)[0])
        raise InputError(f"{path}: row {row + 1}, column {name!r}: absurd time {values[row]:g}")
    milliseconds = name == "timestamp" and "input_length" in table.column_names
    return values / 1e3 if milliseconds else values


def _parse_dates(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = pc.replace_substring_regex(pc.utf8_trim_whitespace(column), r"(Z|[+-]\d\d:?\d\d)$", "")
    try:
        return text.cast(pa.timestamp("ns"))
    except pa.ArrowException:
        for row, value in enumerate(text.to_pylist()):
            try:
                pa.scalar(value).cast(pa.timestamp("ns"))
            except (pa.ArrowException, TypeError):
                raise InputError(
                    f"{path}: row {row + 1}, column {name!r}: expected seconds or a date such as "
                    f"2023-11-16 18:15:46.68, got {value!r}"
                ) from None
        raise InputError(f"{path}: column {name!r} does not hold dates") from None


Sessions = tuple[NDArray[np.int32] | None, NDArray[np.int32] | None, NDArray[np.float64] | None]


def _sessions(path: Path, table: pa.Table) -> Sessions:
    """Return session, round and think time, where the file has all three.

    A row without a session is one of its own.
    """
    names = table.column_names
    session_name = _pick(names, ("session_id", "session"))
    round_name = _pick(names, ("round", "turn"))
    think_name = _pick(names, ("think_s", "think_time_s", "gap_s"))
    if session_name is None or round_name is None or think_name is None:
        return None, None, None
    keys = _codes(table.column(session_name))
    alone = table.column(session_name).is_null().to_numpy()
    if "agent" in names:
        agents = _codes(table.column("agent"))
        keys = keys * (int(agents.max()) + 1) + agents
    keys[alone] = -1 - np.arange(alone.sum())
    _, session = np.unique(keys, return_inverse=True)
    turn = _numbers(path, _zero_filled(table, round_name), round_name)
    order = np.lexsort((turn, session))
    starts = np.concatenate(([True], np.diff(session[order]) != 0))
    position = np.arange(len(order))
    rounds = np.empty(len(order), np.int32)
    rounds[order] = position - np.maximum.accumulate(np.where(starts, position, 0))
    think = np.maximum(_numbers(path, _zero_filled(table, think_name), think_name), 0.0)
    return session.astype(np.int32), rounds, think


def _zero_filled(table: pa.Table, name: str) -> pa.Table:
    filled = pc.fill_null(table.column(name), 0)
    return table.set_column(table.column_names.index(name), name, filled)


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return np.asarray(encoded.indices.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _drawn_arrivals(
    path: Path, n: int, session: NDArray[np.int32] | None, rate_rps: float | None, seed: int
) -> NDArray[np.float64]:
    """Draw Poisson arrivals; whole sessions arrive at once, at the rate that gives ``rate_rps``."""
    if rate_rps is None:
        raise InputError(
            f"{path}: has no arrival times; give rate_rps in the workload (or --rate) to draw them"
        )
    rng = np.random.default_rng(seed)
    if session is None:
        return np.cumsum(rng.exponential(1.0 / rate_rps, n))
    sessions = int(session.max()) + 1
    starts_s = np.cumsum(rng.exponential(n / sessions / rate_rps, sessions))
    return np.asarray(starts_s[session])


def _classes(table: pa.Table) -> tuple[NDArray[np.int16] | None, tuple[str, ...]]:
    name = _pick(table.column_names, ("class", "class_name"))
    if name is None:
        return None, ()
    encoded = table.column(name).cast(pa.string()).fill_null("default").combine_chunks()
    encoded = encoded.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int16)
    return codes, tuple(encoded.dictionary.to_pylist())


def _prefixes(
    path: Path, table: pa.Table, prompt: NDArray[np.int32], session: NDArray[np.int32] | None
) -> Prefixes | None:
    names = table.column_names
    if "block_ids" in names:
        offsets, ids = _lists(path, table, "block_ids")
        return Prefixes(offsets, _dense(ids), _block_tokens(path, table))
    if "hash_ids" in names:
        offsets, ids = _lists(path, table, "hash_ids")
        whole = np.minimum(np.diff(offsets), prompt // MOONCAKE_BLOCK_TOKENS)
        offsets, ids = _shorten(offsets, ids, whole)
        return Prefixes(offsets, _dense(ids), MOONCAKE_BLOCK_TOKENS)
    if "hash_runs" in names and session is not None:
        offsets, runs = _lists(path, table, "hash_runs")
        return _expand_runs(offsets, runs, _codes(table.column("session")))
    return None


def _block_tokens(path: Path, table: pa.Table) -> int:
    """Return the length of the blocks: of the file's metadata, or of its column."""
    metadata: Mapping[bytes, bytes] = table.schema.metadata or {}
    if "block_tokens" not in table.column_names:
        return int(metadata.get(b"block_tokens", b"16"))
    sizes = set(table.column("block_tokens").drop_null().to_pylist()) or {16}
    size = sizes.pop()
    if sizes or not isinstance(size, int) or size < 1:
        raise InputError(f"{path}: column 'block_tokens' must hold one positive whole number")
    return size


def _lists(path: Path, table: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    column = table.column(name).combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise InputError(f"{path}: column {name!r} must hold lists of whole numbers")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    values = pc.list_flatten(column)
    if pa.types.is_null(values.type) and not len(values):
        return offsets, np.zeros(0, np.int64)
    if not pa.types.is_integer(values.type) or values.null_count:
        raise InputError(f"{path}: column {name!r} must hold lists of whole numbers")
    return offsets, np.asarray(values.to_numpy(zero_copy_only=False), np.int64)


def _dense(ids: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.unique(ids, return_inverse=True)[1].astype(np.int32)


def _shorten(
    offsets: NDArray[np.int64], values: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep the first ``lengths`` values of each row."""
    position = np.arange(len(values)) - np.repeat(offsets[:-1], np.diff(offsets))
    keep = position < np.repeat(lengths, np.diff(offsets))
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), values[keep]


def _expand_runs(
    offsets: NDArray[np.int64], runs: NDArray[np.int64], session: NDArray[np.int64]
) -> Prefixes:
    """Expand ``[start, length, ...]`` runs of block ids that are local to a session."""
    starts, lengths = runs[::2], runs[1::2]
    of_run = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets) // 2)
    highest = np.zeros(int(session.max()) + 1, np.int64)
    np.maximum.at(highest, session[of_run], starts + lengths)
    base = np.concatenate(([0], np.cumsum(highest)))[:-1]
    first = starts + base[session[of_run]]
    ends = np.cumsum(lengths)
    ids = np.repeat(first - (ends - lengths), lengths) + np.arange(
        int(ends[-1]) if len(ends) else 0
    )
    per_row = np.zeros(len(offsets) - 1, np.int64)
    np.add.at(per_row, of_run, lengths)
    row_offsets = np.concatenate(([0], np.cumsum(per_row))).astype(np.int64)
    return Prefixes(row_offsets, ids.astype(np.int32), AGENT_BLOCK_TOKENS)
