"""The columnar trace: requests as arrays, never as objects."""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Block identifiers of each request's context, compressed by rows.

    Row ``i`` is ``block_ids[offsets[i]:offsets[i + 1]]``; its ``j``-th id names the content of
    tokens ``j * block_tokens`` to ``(j + 1) * block_tokens`` *given everything before it*, so two
    requests share KV cache exactly as far as their leading ids agree. A row may reach past the
    prompt into the output: a later round of the session can then hit what was generated.
    """

    offsets: NDArray[np.int64]
    block_ids: NDArray[np.int32]
    """Dense ids, ``0 .. n_blocks - 1``."""
    block_tokens: int

    @property
    def n_blocks(self) -> int:
        """Number of distinct blocks."""
        return int(self.block_ids.max()) + 1 if self.block_ids.size else 0

    def take(self, rows: NDArray[np.int64]) -> "Prefixes":
        """Return the given rows, ids made dense again."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        index = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        _, dense = np.unique(self.block_ids[index], return_inverse=True)
        return Prefixes(offsets, dense.astype(np.int32), self.block_tokens)

    def coarse(self, factor: int) -> "Prefixes":
        """Return blocks ``factor`` times as long; what does not fill the last one is dropped."""
        lengths = np.diff(self.offsets) // factor
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        index = np.repeat(self.offsets[:-1], lengths) + (within + 1) * factor - 1
        _, dense = np.unique(self.block_ids[index], return_inverse=True)
        return Prefixes(offsets, dense.astype(np.int32), self.block_tokens * factor)


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival. All columns have one entry a request."""

    arrival_s: NDArray[np.float64]
    """Seconds from the start of the trace, non-decreasing. In a session (see ``think_s``) only the
    first round's entry is an arrival; later rounds arrive when the round before is answered."""
    prompt_tokens: NDArray[np.int32]
    """At least 1; in a session the whole context sent, not the increment."""
    output_tokens: NDArray[np.int32]
    """At least 1."""
    session_id: NDArray[np.int32] | None = None
    round: NDArray[np.int32] | None = None
    """0 for a session's first request; rounds of a session are in trace order."""
    think_s: NDArray[np.float64] | None = None
    """Delay between the answer of the round before and this round's arrival (tool or human).
    When present, rounds above 0 arrive by it instead of by ``arrival_s``."""
    class_id: NDArray[np.int16] | None = None
    """Index into ``class_names``: the SLO class."""
    class_names: tuple[str, ...] = ()
    model_id: NDArray[np.int16] | None = None
    region_id: NDArray[np.int16] | None = None
    prefix: Prefixes | None = None
    stored_tokens: NDArray[np.int32] | None = None
    """Leading prompt tokens whose KV cache a store outside the engines holds."""
    name: str = "trace"
    notes: tuple[str, ...] = ()
    """What was dropped, added or assumed while the trace was made."""

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        for f in fields(self):
            column = getattr(self, f.name)
            if isinstance(column, np.ndarray) and len(column) != n:
                raise InputError(
                    f"{self.name}: column {f.name} has {len(column)} rows, expected {n}"
                )
        stored = self.stored_tokens
        if stored is not None and ((stored < 0) | (stored > self.prompt_tokens)).any():
            raise InputError(f"{self.name}: stored_tokens must lie in 0 to prompt_tokens")
        if self.prefix is not None and len(self.prefix.offsets) != n + 1:
            raise InputError(
                f"{self.name}: prefix has {len(self.prefix.offsets) - 1} rows, not {n}"
            )

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """Time from the start of the trace to its last arrival."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    @property
    def rate_rps(self) -> float:
        """Mean arrival rate over the trace."""
        return len(self) / self.duration_s if self.duration_s > 0 else float("inf")

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return the given rows, in that order."""
        columns = {
            f.name: getattr(self, f.name)[rows]
            for f in fields(self)
            if isinstance(getattr(self, f.name), np.ndarray)
        }
        prefix = self.prefix.take(rows) if self.prefix is not None else None
        return replace(self, **columns, prefix=prefix)

    def scale_rate(self, factor: float) -> Self:
        """Return the trace with arrivals ``factor`` times as frequent; think times are kept."""
        if not (np.isfinite(factor) and factor > 0):
            raise InputError(f"rate scale must be a positive number, got {factor}")
        return replace(self, arrival_s=self.arrival_s / factor)

    def with_notes(self, *notes: str) -> Self:
        """Return the trace with more notes."""
        return replace(self, notes=self.notes + notes)

    def slice_time(self, start_s: float, end_s: float | None = None) -> Self:
        """Return the arrivals in ``[start_s, end_s)``, the clock set back to 0.

        Sessions are kept or dropped whole, by their first round.
        """
        starts_s = self.session_starts_s() if self.think_s is not None else self.arrival_s
        keep = starts_s >= start_s
        if end_s is not None:
            keep &= starts_s < end_s
        cut = self.take(np.flatnonzero(keep))
        return replace(cut, arrival_s=cut.arrival_s - start_s)

    def session_starts_s(self) -> NDArray[np.float64]:
        """Return the arrival of each request's session: of its first round in the trace."""
        if self.session_id is None:
            return self.arrival_s
        _, first, of = np.unique(self.session_id, return_index=True, return_inverse=True)
        return np.asarray(self.arrival_s[first][of])
