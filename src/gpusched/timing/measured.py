"""Times of an engine as measured on it, free of data sheets.

A file with a ``[measured]`` table, as ``gpusched calibrate`` writes it, says how long the iterations of
one engine take. Wherever a spec or plan names such a file as its ``timing``, an iteration takes::

    decodes alone, b of them     decode_s(b) + context_s sum(c_i)
    with prompts, n tokens       tokens_s(n) + sequence_s s + context_s sum(c_i) + pair_s W

with ``c_i`` the contexts of the decodes, ``s`` the sequences sampled (decodes, and prompts that end) and
``W`` the query-key pairs of the prompts: the aggregates of ``CompiledTiming``. Both tables are piecewise
linear between the batch sizes measured and need not rise: kernels change with the size of a batch.
"""

import json
import tomllib
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
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


class MeasuredIteration(Section):
    """Seconds that iterations take."""

    decode_batch: tuple[int, ...] = Field(min_length=1, max_length=256)
    """Batch sizes, rising from 1."""
    decode_s: tuple[Seconds, ...] = Field(min_length=1, max_length=256)
    """Of iterations of as many decodes and no prompts, at no context."""
    tokens: tuple[int, ...] = Field(min_length=1, max_length=256)
    """Sizes of batches with prompts, rising."""
    tokens_s: tuple[Seconds, ...] = Field(min_length=1, max_length=256)
    """Of iterations of as many tokens, without what follows."""
    sequence_s: Seconds = 0.0
    """For each sequence of an iteration with prompts."""
    context_s: Seconds = 0.0
    """For each token of a decode's context."""
    pair_s: Seconds = 0.0
    """For each query-key pair of prompts."""

    @model_validator(mode="after")
    def _check_tables(self) -> "MeasuredIteration":
        for sizes_name, times_name in (("decode_batch", "decode_s"), ("tokens", "tokens_s")):
            sizes, times = getattr(self, sizes_name), getattr(self, times_name)
            if len(sizes) != len(times):
                raise ValueError(
                    f"{sizes_name} has {len(sizes)} entries, {times_name} {len(times)}; each batch size "
                    "needs its time"
                )
            if sizes[0] < 1 or any(b <= a for a, b in pairwise(sizes)):
                raise ValueError(f"{sizes_name} must rise from entry to entry, from 1 at least")
            if min(times) <= 0:
                raise ValueError(f"{times_name}: an iteration takes some time; got {min(times):g}")
        if self.decode_batch[0] != 1:
            raise ValueError(f"decode_batch must begin with 1, got {self.decode_batch[0]}")
        return self


def piecewise(sizes: tuple[int, ...], times_s: tuple[float, ...], at: Floats) -> Floats:
    """Return a table's times, constant before its first size and on by its last slope, if it rises."""
    n = np.asarray(at, np.float64)
    found = np.interp(n, np.asarray(sizes, np.float64), np.asarray(times_s, np.float64))
    if len(sizes) > 1:
        slope = max((times_s[-1] - times_s[-2]) / (sizes[-1] - sizes[-2]), 0.0)
        found = found + np.maximum(n - sizes[-1], 0.0) * slope
    return np.where(n > 0, found, 0.0)


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
    """Covariance of the fitted figures: ``names`` in order, those of tables as ``tokens_s[i]``."""

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

    def decodes_s(self, batch: Floats) -> Floats:
        """Return iterations of decodes alone, at no context."""
        return piecewise(self.iteration.decode_batch, self.iteration.decode_s, batch)

    def batch_s(self, tokens: Floats) -> Floats:
        """Return iterations with prompts by their tokens alone."""
        return piecewise(self.iteration.tokens, self.iteration.tokens_s, tokens)

    def compile(self, max_tokens: int, max_seqs: int) -> CompiledTiming:
        """Return the times as arrays for batches of up to the given sizes."""
        parts, sequences = self.iteration, np.arange(max_seqs + 1, dtype=np.float64)
        return CompiledTiming(
            tokens_s=self.batch_s(np.arange(max_tokens + 1, dtype=np.float64)),
            decode_s=self.decodes_s(sequences),
            logits_s=parts.sequence_s * sequences,
            context_s=parts.context_s,
            window_context_s=0.0,
            window=0,
            decode_fixed_s=0.0,
            prefill_fixed_s=0.0,
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
        """Return the part of an iteration with prompts that depends on its number of tokens alone."""
        return self.found.batch_s(tokens)

    def decode_tokens_s(self, batch: Floats) -> Floats:
        """Return a decode-only iteration at zero context."""
        return self.found.decodes_s(batch)

    def fractional_decode_s(self, batch: Floats) -> Floats:
        """Return the same for batches that are means."""
        return self.found.decodes_s(batch)

    def compile(self, max_tokens: int = 8192, max_seqs: int = 1024) -> CompiledTiming:
        """Return the model as arrays for batches of up to the given sizes."""
        return _compile(self.found, max_tokens, max_seqs)

    def experts_s(self, tokens: Floats) -> Floats:
        """Return zeros: what experts take is inside ``tokens_s``."""
        return np.zeros_like(np.asarray(tokens, np.float64))

    def logits_s(self, sequences: Floats) -> Floats:
        """Return what an iteration takes by its sequences."""
        return self.found.iteration.sequence_s * np.asarray(sequences, np.float64)

    @property
    def decode_fixed_s(self) -> float:
        """None."""
        return 0.0

    @property
    def prefill_fixed_s(self) -> float:
        """None."""
        return 0.0

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
