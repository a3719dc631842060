"""Times of an engine as measured on it, free of data sheets.

A file with a ``[measured]`` table, as ``gpusched calibrate`` writes it, says how long the iterations of
one engine take. Wherever a spec or plan names such a file as its ``timing``, an iteration over ``n``
tokens that samples ``s`` sequences (decodes, and prompts that end) takes::

    fixed_s + tokens_s(n) + sequence_s s + context_s sum(c_i) [+ prompt_s + pair_s W if it carries prompts]

with ``c_i`` the contexts of the decodes and ``W`` the query-key pairs of the prompts, the aggregates of
``CompiledTiming``. ``tokens_s(n)`` is piecewise linear between the batch sizes measured.
"""

import json
import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from gpusched.domain.document import Section, validate
from gpusched.errors import InputError
from gpusched.timing.coefficients import Calibration
from gpusched.timing.compiled import CompiledTiming
from gpusched.timing.iteration import TimingModel
from gpusched.timing.operators import Floats

Seconds = Annotated[float, Field(ge=0, le=1e5)]
Range = tuple[int, int]

PARAMETERS = ("fixed_s", "tokens_s", "sequence_s", "context_s", "prompt_s", "pair_s")


class MeasuredIteration(Section):
    """Seconds that the parts of an iteration take."""

    fixed_s: Seconds
    """Of every iteration."""
    tokens: tuple[int, ...] = Field(min_length=2, max_length=64)
    """Batch sizes between which time is linear, rising from 1."""
    tokens_s: tuple[Seconds, ...] = Field(min_length=2, max_length=64)
    """What batches of ``tokens`` take beyond one of a single token."""
    sequence_s: Seconds
    context_s: Seconds
    prompt_s: Seconds
    """Of every iteration that carries prompt tokens."""
    pair_s: Seconds

    @model_validator(mode="after")
    def _check_table(self) -> "MeasuredIteration":
        if len(self.tokens) != len(self.tokens_s):
            raise ValueError(
                f"tokens has {len(self.tokens)} entries, tokens_s {len(self.tokens_s)}; each batch "
                "size needs its time"
            )
        for name, values in (("tokens", self.tokens), ("tokens_s", self.tokens_s)):
            steps = np.diff(np.asarray(values, np.float64))
            if (steps < 0).any() or (name == "tokens" and (steps == 0).any()):
                raise ValueError(f"{name} must rise from entry to entry")
        if self.tokens[0] != 1:
            raise ValueError(f"tokens must begin with 1, got {self.tokens[0]}")
        if self.fixed_s + self.sequence_s + self.tokens_s[-1] <= 0:
            raise ValueError("an iteration takes no time at all")
        return self


class RequestOverhead(Section):
    """Time that a request spends outside iterations: HTTP, tokenizer, admission, the way back."""

    entry_s: Seconds = 0.0
    """From sending until the engine's scheduler has it."""
    entry_token_s: Seconds = 0.0
    """The same, for each token of the prompt."""
    exit_s: Seconds = 0.0
    """From the end of an iteration until its token is received."""


NO_OVERHEAD = RequestOverhead()


class MeasuredRanges(Section):
    """Least and most of what the experiment covered; predictions beyond are extrapolations."""

    batch: Range
    prompt_tokens: Range
    context_tokens: Range
    """Of one sequence."""


class MeasuredError(Section):
    """How well the fit is known to predict."""

    relative: float = Field(ge=0, le=10)
    """Mean absolute relative error of iteration times, cross-validated over parts of the experiment."""
    rows: int = Field(ge=1)
    """Measurements fitted, each a median or mean of several iterations."""
    condition: float = Field(ge=1)
    """Condition number of the design, columns scaled."""


class Covariance(Section):
    """Covariance of the fitted figures: ``names`` in order, ``tokens_s[i]`` those of the table."""

    names: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _check_shape(self) -> "Covariance":
        size = len(self.names)
        if len(self.matrix) != size or any(len(row) != size for row in self.matrix):
            raise ValueError(f"matrix must have {size} rows of {size} entries, one for each name")
        return self


class MeasuredEngine(Section):
    """One engine, measured."""

    version: Literal[1] = 1
    engine: str = Field(min_length=1, max_length=200)
    """Whose dialect it speaks, such as ``vllm``."""
    engine_version: str | None = None
    model: str
    """Name under which it serves."""
    machine: str | None = None
    """Where it ran, in words."""
    measured_at: str | None = None
    gpus: int = Field(default=1, ge=1, le=1024)
    """GPUs, or machines without any, of the engine."""
    kv_tokens: int | None = Field(default=None, ge=1)
    """Capacity of its KV cache; the model of memory decides where the engine does not tell."""
    block_size: int | None = Field(default=None, ge=1, le=1024)
    max_num_seqs: int | None = Field(default=None, ge=1, le=65536)
    max_num_batched_tokens: int | None = Field(default=None, ge=1, le=1_048_576)
    max_model_len: int | None = Field(default=None, ge=1)
    iteration: MeasuredIteration
    request: RequestOverhead = NO_OVERHEAD
    ranges: MeasuredRanges
    error: MeasuredError
    half_width: dict[str, float | tuple[float, ...]] = Field(default_factory=dict)
    """Half-widths of 95 % confidence intervals, by the names of ``iteration`` and ``request``."""
    covariance: Covariance | None = None

    def __hash__(self) -> int:
        return hash((self.engine, self.model, self.iteration, self.request))

    def batch_s(self, tokens: Floats) -> Floats:
        """Return ``tokens_s(n)``: the table, continued by its last slope."""
        known = np.asarray(self.iteration.tokens, np.float64)
        times = np.asarray(self.iteration.tokens_s, np.float64)
        n = np.asarray(tokens, np.float64)
        slope = (times[-1] - times[-2]) / (known[-1] - known[-2])
        return np.asarray(np.interp(n, known, times) + np.maximum(n - known[-1], 0.0) * slope)

    def compile(self, max_tokens: int, max_seqs: int) -> CompiledTiming:
        """Return the times as arrays for batches of up to the given sizes."""
        parts, sequences = self.iteration, np.arange(max_seqs + 1, dtype=np.float64)
        tokens_s = parts.fixed_s + self.batch_s(np.arange(max_tokens + 1, dtype=np.float64))
        tokens_s[0] = 0.0
        decode_s = parts.fixed_s + self.batch_s(sequences) + parts.sequence_s * sequences
        decode_s[0] = 0.0
        return CompiledTiming(
            tokens_s=tokens_s,
            decode_s=decode_s,
            logits_s=parts.sequence_s * sequences,
            context_s=parts.context_s,
            window_context_s=0.0,
            window=0,
            decode_fixed_s=0.0,
            prefill_fixed_s=parts.prompt_s,
            work_s=parts.pair_s,
            window_work_s=0.0,
        )

    def warnings(self, batch: int, prompt_tokens: int, context_tokens: int) -> list[str]:
        """Return in what a use of the engine leaves what was measured."""
        what = f"{self.engine} serving {self.model}, as measured"
        beyond = (
            ("batches", batch, self.ranges.batch[1]),
            ("prompts", prompt_tokens, self.ranges.prompt_tokens[1]),
            ("contexts", context_tokens, self.ranges.context_tokens[1]),
        )
        return [
            f"{what}: {name} of {value} lie beyond the {known} that were measured"
            for name, value, known in beyond
            if value > known
        ]


@dataclass(frozen=True)
class MeasuredModel(TimingModel):
    """An engine whose times were measured; model and GPU say only what it is and costs."""

    measured: MeasuredEngine | None = None

    @property
    def found(self) -> MeasuredEngine:
        """What was measured."""
        assert self.measured is not None
        return self.measured

    def tokens_s(self, tokens: Floats) -> Floats:
        """Return the part of an iteration that depends on its number of tokens alone."""
        m = np.asarray(tokens, np.float64)
        return np.where(m > 0, self.found.iteration.fixed_s + self.found.batch_s(m), 0.0)

    def compile(self, max_tokens: int = 8192, max_seqs: int = 1024) -> CompiledTiming:
        """Return the model as arrays for batches of up to the given sizes."""
        return _compile(self.found, max_tokens, max_seqs)

    def experts_s(self, tokens: Floats) -> Floats:
        """Return zeros: what experts take is inside ``tokens_s``."""
        return np.zeros_like(np.asarray(tokens, np.float64))

    def logits_s(self, sequences: Floats) -> Floats:
        """Return what an iteration takes by its sequences."""
        return self.found.iteration.sequence_s * np.asarray(sequences, np.float64)

    def padded(self, batch: Floats) -> Floats:
        """Return the batch: steps of captured graphs are in the measured table."""
        return np.asarray(batch, np.float64)

    @property
    def decode_fixed_s(self) -> float:
        """Inside ``fixed_s``."""
        return 0.0

    @property
    def prefill_fixed_s(self) -> float:
        """Of an iteration that carries prompt tokens."""
        return self.found.iteration.prompt_s

    @property
    def context_s(self) -> float:
        """Decode attention per token of context."""
        return self.found.iteration.context_s

    @property
    def window(self) -> int:
        """None: a window's effect is inside the measured slopes."""
        return 0

    @property
    def window_context_s(self) -> float:
        """None."""
        return 0.0

    @property
    def work_s(self) -> float:
        """Prefill attention per query-key pair."""
        return self.found.iteration.pair_s

    @property
    def window_work_s(self) -> float:
        """None."""
        return 0.0


@lru_cache(maxsize=64)
def _compile(measured: MeasuredEngine, max_tokens: int, max_seqs: int) -> CompiledTiming:
    return measured.compile(max_tokens, max_seqs)


def measured_model(model: TimingModel, measured: MeasuredEngine, file: str | Path) -> MeasuredModel:
    """Return an engine with measured times in place of those of a timing model.

    Raises:
        InputError: the engine is spread over other GPUs than the measured one.
    """
    p = model.parallelism
    if p.gpus != measured.gpus or p.pp > 1 or p.dp > 1:
        raise InputError(
            f"timing: {file} was measured on an engine of {measured.gpus} GPU"
            f"{'' if measured.gpus == 1 else 's'}, this one is {p.layout} on {p.gpus}; name a file "
            "measured on such an engine, or restrict search.tensor_parallel_sizes"
        )
    calibration = Calibration(
        rows=measured.error.rows,
        tpot_error=measured.error.relative,
        ttft_error=measured.error.relative,
        max_tp=p.tp,
        max_batch=measured.ranges.batch[1],
        max_context_tokens=measured.ranges.context_tokens[1],
    )
    return MeasuredModel(
        model.model, model.gpu, p, model.weights_dtype, model.kv_cache_dtype,
        replace(model.coefficients, calibration=calibration), measured,
    )  # fmt: skip


def read_measured(file: str | Path | None) -> MeasuredEngine | None:
    """Return the engine that a timing file describes; None if it holds coefficients or is not given.

    Raises:
        InputError: the file cannot be read, or its ``[measured]`` table is wrong.
    """
    if file is None:
        return None
    path = Path(file)
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{file}: cannot read the timing file ({error.strerror})") from None
    return _read(path, stamp)


@lru_cache(maxsize=64)
def _read(path: Path, stamp: int) -> MeasuredEngine | None:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the timing file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file ({error})") from None
    if "measured" not in values:
        return None
    others = sorted(set(values) - {"measured"})
    if others:
        raise InputError(
            f"{path}: {others[0]}: coefficients have no effect beside a [measured] table; drop one"
        )
    return measured_from(values["measured"], f"{path}: measured")


def measured_from(values: Any, origin: str) -> MeasuredEngine:
    """Return the engine that a ``[measured]`` table describes.

    Raises:
        InputError: one line for each problem.
    """
    if not isinstance(values, dict):
        raise InputError(f"{origin}: must be a table, got {values!r}")
    return validate(MeasuredEngine, values, origin)


def measured_toml(measured: MeasuredEngine) -> str:
    """Return the text of a timing file."""
    values = measured.model_dump(mode="json", exclude_none=True)
    lines: list[str] = []

    def table(name: str, content: dict[str, Any]) -> None:
        lines.append(f"[{name}]")
        plain = {k: v for k, v in content.items() if not isinstance(v, dict)}
        lines.extend(f"{key} = {_toml(value)}" for key, value in plain.items())
        lines.append("")
        for key, value in content.items():
            if isinstance(value, dict) and value:
                table(f"{name}.{key}", value)

    table("measured", values)
    return "\n".join(lines).rstrip() + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        inner = [_toml(item) for item in value]
        if value and isinstance(value[0], list):
            return "[\n" + "".join(f"    {row},\n" for row in inner) + "]"
        return "[" + ", ".join(inner) + "]"
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if any(c in text for c in ".en") else text + ".0"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)
