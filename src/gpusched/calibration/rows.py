"""From streamed answers to measured iterations.

All requests of a closed batch get a token from every iteration, so the gaps between their tokens are
the times of iterations, whatever lies between the engine and its client. A prompt that joins makes one
gap longer: the one that ends when its first token comes.
"""

from dataclasses import dataclass

import numpy as np

from gpusched.calibration.stage import Answer, Floats, Ints, Record

BLOCK = 8
"""Iterations that are averaged into one row."""
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


def timeline(batch: tuple[Answer, ...]) -> Timeline | None:
    """Return the iterations during which all requests decode; None where there are too few."""
    times = [answer.token_times_s() for answer in batch]
    starts = [t[0] if len(t) else np.nan for t in times]
    if not np.isfinite(starts).all():
        return None
    last = int(np.argmax(starts))
    until_s = min(float(np.nanmax(t)) for t in times)
    reference = times[last]
    inside = np.flatnonzero(reference <= until_s + 1e-9)
    if len(inside) < WARM + 4:
        return None
    first, count = int(inside[0]), int(inside[-1] - inside[0] + 1)
    ends = np.full((len(batch), count), np.nan)
    contexts = np.zeros((len(batch), count), np.int64)
    steps = np.arange(count)
    middle = inside[len(inside) // 2]
    for i, (answer, own) in enumerate(zip(batch, times, strict=True)):
        ahead = int(np.nanargmin(np.abs(own - reference[middle]))) - int(middle)
        at = first + ahead + steps
        known = (at >= 0) & (at < len(own))
        ends[i, known] = own[at[known]]
        contexts[i] = answer.prompt_tokens + at
    end_s = np.nanmedian(ends, axis=0) if len(batch) > 1 else ends[0]
    keep = slice(WARM, None)
    return Timeline(
        end_s[keep], contexts.sum(axis=0)[keep].astype(np.float64), contexts.max(axis=0)[keep]
    )


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
    plain = np.isfinite(gap_s)
    found = []
    for probe in record.probes:
        if not len(probe.received_s):
            continue
        last = int(np.nanargmin(np.abs(line.end_s - probe.received_s[0]))) - 1
        pieces = chunks(probe.prompt_tokens, max(budget - b, 1))
        begin = last - len(pieces) + 1
        touched = np.searchsorted(line.end_s, probe.sent_s) - 1
        plain[max(min(begin, touched), 0) : last + 2] = False
        if begin < 1 or last + 1 >= len(gap_s) or not np.isfinite(gap_s[begin : last + 1]).all():
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
            )
        )
    return found


def trimmed_mean(values: Floats) -> float:
    """Return the mean without the largest and smallest eighth."""
    ordered = np.sort(values)
    cut = len(ordered) // 8
    return float(ordered[cut : len(ordered) - cut].mean())


def _runs(plain: np.ndarray) -> list[Ints]:
    """Return blocks of successive plain iterations, the short ends of runs left out."""
    blocks = []
    edges = np.flatnonzero(np.diff(np.concatenate(([0], plain.astype(np.int8), [0]))))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        count = max((end - begin) // BLOCK, 1)
        if end - begin >= 3:
            blocks += [part for part in np.array_split(np.arange(begin, end), count)]
    return blocks
