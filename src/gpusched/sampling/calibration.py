"""Which threshold to use, from a log of one's own answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpusched.errors import InputError
from gpusched.sampling.answer_log import PromptAnswers
from gpusched.sampling.replay import Outcome, replay
from gpusched.sampling.stopping import (
    Agreement,
    BayesFactor,
    Beta,
    Dirichlet,
    Fixed,
    StoppingRule,
    Window,
)

THRESHOLDS = (2.0, 5.0, 7.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
FIXED = (1, 3, 5, 10, 16, 32, 64, 100, 200)
TOLERANCE = 0.005
"""Accuracy that may be given up, share of prompts."""


@dataclass(frozen=True, slots=True)
class Point:
    """A rule on the curve."""

    name: str
    kind: str
    """``bayes factor``, ``fixed`` or ``other``."""
    threshold: float | None
    accuracy: float
    standard_error: float
    samples: float
    tokens: float
    """Mean completion tokens a prompt; nan where the log has none."""
    lost: float
    """Accuracy below that of all samples on the same draws; the upper end of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The curve and the threshold that costs least for an accuracy next to that of all samples."""

    points: tuple[Point, ...]
    recommended: Point | None
    """None where no threshold is within the tolerance."""
    full: Point
    """Majority of all samples."""
    prompts: int
    has_gold: bool
    """Otherwise accuracy is agreement with the log's most frequent answer."""


def calibrate(
    log: Sequence[PromptAnswers],
    *,
    samples: int = 100,
    trials: int = 20,
    thresholds: Sequence[float] = THRESHOLDS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> Calibration:
    """Replay the log under Bayes-factor thresholds, fixed numbers and other rules.

    Recommended is the threshold of the fewest samples that loses at most ``tolerance`` against the
    majority of all ``samples`` (with 95 % confidence over the trials, on the same draws).

    Raises:
        InputError: wrong thresholds or tolerance, prompts partly with right answers.
    """
    if not thresholds or not all(np.isfinite(b) and b > 0 for b in thresholds):
        raise InputError(f"thresholds: must be positive, got {list(thresholds)}")
    if not 0 <= tolerance < 1:
        raise InputError(f"tolerance: must be from 0 to below 1, got {tolerance}")
    known = [prompt.gold != -2 for prompt in log]
    if any(known) and not all(known):
        raise InputError(
            f"gold: {known.count(False)} of {len(known)} prompts have no right answer; give all or none"
        )
    rules: dict[str, tuple[str, float | None, StoppingRule]] = {
        f"B = {b:g}": ("bayes factor", b, BayesFactor(b)) for b in sorted(set(thresholds))
    }
    fixed = sorted({n for n in FIXED if n < samples} | {samples})
    rules |= {f"{n} samples": ("fixed", float(n), Fixed(n)) for n in fixed}
    rules |= {
        "Beta 0.95": ("other", None, Beta()),
        "Dirichlet 0.95": ("other", None, Dirichlet()),
        "5 alike (ESC)": ("other", None, Window()),
        "75 % agree at 2, 4, 8": ("other", None, Agreement()),
    }
    outcomes = replay(
        log, {name: rule for name, (_, _, rule) in rules.items()}, samples=samples,
        trials=trials, seed=seed, progress=progress,
    )  # fmt: skip
    reference = outcomes[f"{samples} samples"]
    points = tuple(
        _point(name, kind, threshold, outcomes[name], reference)
        for name, (kind, threshold, _) in rules.items()
    )
    close = [p for p in points if p.kind == "bayes factor" and p.lost <= tolerance]
    return Calibration(
        points, min(close, key=lambda p: p.samples, default=None),
        next(p for p in points if p.name == f"{samples} samples"), len(log), all(known),
    )  # fmt: skip


def _point(
    name: str, kind: str, threshold: float | None, outcome: Outcome, reference: Outcome
) -> Point:
    lost = (reference.right - outcome.right).mean(axis=0)
    spread = 1.96 * lost.std(ddof=1) / len(lost) ** 0.5 if len(lost) > 1 else np.inf
    same = outcome is reference
    return Point(
        name, kind, threshold, outcome.accuracy, outcome.standard_error,
        float(outcome.samples.mean()), float(outcome.tokens.mean()),
        0.0 if same else float(lost.mean() + spread),
    )  # fmt: skip
