"""From streamed answers to measured iterations.

All requests of a closed batch get a token from every iteration, so the gaps between their tokens are
the times of iterations, whatever lies between the engine and its client. A prompt that joins makes one
gap longer: the one that ends when its first token comes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.calibration.stage import Answer, Floats, Ints, Record

BLOCK = 8
"""Iterations that are averaged into one row."""
LONG = 1.4
"""Usual gaps beyond which a gap is a long one."""
CLOCK_S = 2e-5
"""Less than what a client can tell apart: tokens read together."""
WARM = 2
"""Iterations left out after the last request of a batch has joined."""


@dataclass(frozen=True, slots=True)
class Row:
    """Mean of a few iterations that followed one another: aggregates of their batches and time."""

    stage: int
    """Rows of one stage stand and fall together in cross-validation."""
    tokens: tuple[int, ...]
    """Tokens of each iteration."""
    sequences: float
    """Sequences sampled, mean over the iterations, as are all that follow."""
    context_tokens: float
    """Sum over the decodes."""
    prompts: float
    """Share of the iterations that carry prompt tokens."""
    pairs: float
    """Query-key pairs of prompt chunks."""
    time_s: float
    longest_context: int
    prompt_tokens: int = 0
    batch: int = 0
    mean_s: float = 0.0
    """Mean time with disturbances; ``time_s`` is without the largest and smallest."""

    @property
    def iterations(self) -> int:
        """Iterations averaged."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Ends of successive iterations with all of a batch decoding."""

    end_s: Floats
    context_tokens: Floats
    """Sum of the contexts of the iteration that ends then."""
    longest: Ints
    seen: NDArray[np.bool_]
    """Whether a token came alone then; else the time lies evenly between those around."""


def timeline(batch: tuple[Answer, ...]) -> Timeline | None:
    """Return the iterations during which all requests decode; None where there are too few."""
    times = [answer.token_times_s() for answer in batch]
    if any(len(t) < WARM + 4 or not np.isfinite(t).any() for t in times):
        return None
    last = int(np.argmax([answer.received_s[0] for answer in batch]))
    until_s = min(float(np.nanmax(t)) for t in times)
    reference = times[last]
    inside = np.flatnonzero(reference <= until_s + 1e-9)
    if len(inside) < WARM + 4:
        return None
    first, count = int(inside[0]), int(inside[-1] - inside[0] + 1)
    ends = np.full((len(batch), count), np.nan)
    contexts = np.zeros((len(batch), count), np.int64)
    own = np.arange(first, first + count)
    for i, (answer, times_s) in enumerate(zip(batch, times, strict=True)):
        at = own + _ahead(times_s, reference, own)
        known = (at >= 0) & (at < len(times_s))
        ends[i, known] = times_s[at[known]]
        contexts[i] = answer.prompt_tokens + at
    seen = np.isfinite(ends).any(axis=0)
    if seen.sum() < WARM + 4:
        return None
    end_s = np.interp(own, own[seen], np.nanmedian(ends[:, seen], axis=0))
    keep = slice(WARM, None)
    return Timeline(
        end_s[keep], contexts.sum(axis=0)[keep].astype(np.float64), contexts.max(axis=0)[keep],
        seen[keep],
    )  # fmt: skip


def _ahead(times_s: Floats, reference_s: Floats, own: Ints) -> int:
    """Return by how many tokens a stream is ahead of the reference: the shift at which both get their
    tokens at the same times, which uneven gaps make plain."""
    middle_s = reference_s[own[len(own) // 2]]
    if not np.isfinite(middle_s):
        middle_s = float(np.nanmedian(reference_s[own]))
    near = int(np.nanargmin(np.abs(times_s - middle_s))) - int(own[len(own) // 2])
    best, best_s = near, np.inf
    for shift in range(near - 2, near + 3):
        at = own + shift
        known = (at >= 0) & (at < len(times_s))
        apart = np.abs(times_s[at[known]] - reference_s[own[known]])
        apart = apart[np.isfinite(apart)]
        if len(apart) >= min(4, len(own)) and apart.mean() < best_s:
            best, best_s = shift, float(apart.mean())
    return best


def chunks(prompt_tokens: int, room: int) -> list[tuple[int, int]]:
    """Return a prompt as (new, past) tokens of the iterations that carry it."""
    return [(min(room, prompt_tokens - past), past) for past in range(0, prompt_tokens, room)]


def rows_of(record: Record, number: int, budget: int) -> list[Row]:
    """Return the measured iterations of a stage, those with prompts and those without.

    ``budget``: tokens that the engine puts into one iteration.
    """
    line = timeline(record.batch) if record.batch else None
    if line is None:
        return []
    b = len(record.batch)
    gap_s = np.diff(line.end_s)
    context, longest = line.context_tokens[1:], line.longest[1:]
    plain = np.ones(len(gap_s), np.bool_)
    found = []
    for probe in record.probes:
        if probe.received_s[0] > line.end_s[-1]:
            continue  # it waited until the batch had ended
        last = _ending_gap(line.end_s, gap_s, float(probe.received_s[0]))
        pieces = chunks(probe.prompt_tokens, max(budget - b, 1))
        begin = last - len(pieces) + 1
        touched = np.searchsorted(line.end_s, probe.sent_s) - 1
        low, high = max(min(begin, int(touched)), 0), min(last + 2, len(gap_s))
        while low > 0 and not line.seen[low]:
            low -= 1
        while high < len(gap_s) and not line.seen[high]:
            high += 1
        plain[low:high] = False
        inside = begin >= 1 and last + 1 < len(gap_s)
        if not inside or not (line.seen[begin] and line.seen[last + 1]):
            continue
        of = slice(begin, last + 1)
        found.append(
            Row(
                stage=number,
                tokens=tuple(b + new for new, _ in pieces),
                sequences=b + 1.0 / len(pieces),
                context_tokens=float(context[of].mean()),
                prompts=1.0,
                pairs=sum(new * past + new * (new + 1) / 2 for new, past in pieces) / len(pieces),
                time_s=float(gap_s[of].mean()),
                longest_context=int(longest[of].max()),
                prompt_tokens=probe.prompt_tokens,
                batch=b,
                mean_s=float(gap_s[of].mean()),
            )
        )
    for part in _runs(plain):
        found.append(
            Row(
                stage=number,
                tokens=(b,) * len(part),
                sequences=float(b),
                context_tokens=float(context[part].mean()),
                prompts=0.0,
                pairs=0.0,
                time_s=trimmed_mean(gap_s[part]),
                longest_context=int(longest[part].max()),
                batch=b,
                mean_s=float(gap_s[part].mean()),
            )
        )
    return [row for row in found if row.time_s > CLOCK_S]


def _ending_gap(end_s: Floats, gap_s: Floats, first_token_s: float) -> int:
    """Return the gap that ends with a first token: the nearest, or the one before if that is long and
    the nearest is not, for the head of an answer can be late."""
    last = int(np.argmin(np.abs(end_s - first_token_s))) - 1
    usual_s = float(np.median(gap_s))
    late = last >= 1 and gap_s[last - 1] > LONG * usual_s and not gap_s[last] > LONG * usual_s
    return last - 1 if late else last


def trimmed_mean(values: Floats) -> float:
    """Return the mean without the largest and smallest eighth."""
    ordered = np.sort(values)
    cut = len(ordered) // 8
    return float(ordered[cut : len(ordered) - cut].mean())


def _runs(plain: NDArray[np.bool_]) -> list[Ints]:
    """Return blocks of successive plain iterations, the short ends of runs left out."""
    blocks = []
    edges = np.flatnonzero(np.diff(np.concatenate(([0], plain.astype(np.int8), [0]))))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        count = max((end - begin) // BLOCK, 1)
        if end - begin >= 3:
            blocks += [part for part in np.array_split(np.arange(begin, end), count)]
    return blocks
