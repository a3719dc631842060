"""From measured iterations to the figures of a timing file.

Relative errors are made small: rows are divided by their times, figures are non-negative, rows far off
count less (Huber), and of several tables over batch sizes the one that predicts best what it was not
fitted to is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from gpusched.calibration.rows import Row
from gpusched.calibration.stage import Floats
from gpusched.errors import InputError

HUBER = 1.5
"""Standard deviations beyond which a row counts less."""
ROUNDS = 12
FOLDS = 5
BETTER = 0.97
"""A finer table is taken if it lowers the cross-validated error to this share."""
CONFIDENCE = 1.96
OTHERS = ("fixed_s", "sequence_s", "context_s", "prompt_s", "pair_s")
LEAST_SIGMA = 1e-4
"""Relative; a clock's own error."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Figures by the names of the design's columns, with their uncertainty."""

    knots: tuple[int, ...]
    """Batch sizes of the table, from 1."""
    values: Floats
    """Columns: ``fixed_s, sequence_s, context_s, prompt_s, pair_s``, then seconds a token between
    successive knots."""
    covariance: Floats
    sigma: float
    """Relative standard deviation of a row."""
    error: float
    """Mean absolute relative error of rows of stages left out of the fit."""
    condition: float

    @property
    def table_s(self) -> Floats:
        """Time of batches of ``knots`` tokens beyond one token."""
        steps = np.diff(np.asarray(self.knots, np.float64))
        return np.concatenate(([0.0], np.cumsum(self.values[len(OTHERS) :] * steps)))

    def figure(self, name: str) -> float:
        """Return one of the figures named in ``OTHERS``."""
        return float(self.values[OTHERS.index(name)])

    def predict_s(self, rows: Sequence[Row]) -> Floats:
        """Return the times of rows."""
        return np.asarray(features(rows, self.knots) @ self.values)

    def reported(self) -> tuple[tuple[str, ...], Floats]:
        """Return names and covariance of the figures as a file holds them: times of the table in place
        of slopes."""
        steps = np.diff(np.asarray(self.knots, np.float64))
        n, m = len(OTHERS), len(steps)
        change = np.zeros((n + m, n + m))
        change[:n, :n] = np.eye(n)
        change[n:, n:] = np.tril(np.ones((m, m))) * steps
        names = (*OTHERS, *(f"tokens_s[{i}]" for i in range(1, m + 1)))
        return names, change @ self.covariance @ change.T


def features(rows: Sequence[Row], knots: Sequence[int]) -> Floats:
    """Return the design matrix, shape (rows, figures)."""
    low = np.asarray(knots[:-1], np.float64)
    width = np.diff(np.asarray(knots, np.float64))
    width[-1] = np.inf
    found = np.empty((len(rows), len(OTHERS) + len(low)))
    for x, row in zip(found, rows, strict=True):
        x[: len(OTHERS)] = (1.0, row.sequences, row.context_tokens, row.prompts, row.pairs)
        tokens = np.asarray(row.tokens, np.float64)[:, None]
        x[len(OTHERS) :] = np.clip(tokens - low, 0.0, width).mean(axis=0)
    return found


def tables(rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """Return sets of knots to choose from, coarse to fine, within the batch sizes of the rows."""
    sizes = np.unique([n for row in rows for n in row.tokens])
    largest = int(sizes[-1])
    decode = max((row.batch for row in rows), default=1)
    coarse = {1, largest}
    middle = coarse | {decode, _between(decode, largest)}
    fine = set(coarse)
    size = 2
    while size < largest:
        fine.add(size)
        size *= 2 if size < decode else 4
    found = []
    for knots in (coarse, middle, fine):
        chosen = tuple(sorted(k for k in knots if 1 <= k <= largest))
        if len(chosen) > 1 and chosen not in found:
            found.append(_supported(chosen, sizes))
    return list(dict.fromkeys(found))


def _between(low: int, high: int) -> int:
    return max(round(float(np.sqrt(low * high))), 1)


def _supported(knots: tuple[int, ...], sizes: np.ndarray) -> tuple[int, ...]:
    """Leave out knots whose piece no measured batch size lies in."""
    kept = [knots[0]]
    for knot in knots[1:]:
        if ((sizes > kept[-1]) & (sizes <= knot)).any():
            kept.append(knot)
    kept[-1] = knots[-1]
    return tuple(kept)


def fit(rows: Sequence[Row]) -> Fit:
    """Return the best fit of measured iterations.

    Raises:
        InputError: too few rows, or none with prompts or without.
    """
    kinds = {row.prompts > 0 for row in rows}
    if len(rows) < 8 or len(kinds) < 2:
        raise InputError(
            f"only {len(rows)} measurements of iterations"
            + ("" if len(kinds) == 2 else ", all of one kind")
            + "; give the experiment more time with --budget-s"
        )
    time_s = np.array([row.time_s for row in rows])
    weight = np.sqrt([min(row.iterations, 8) if row.prompts == 0 else 2.0 for row in rows])
    stages = np.array([row.stage for row in rows])
    best: Fit | None = None
    for knots in tables(rows):
        x = features(rows, knots)
        error = _cross_validated(x, time_s, weight, stages)
        if best is None or error < BETTER * best.error:
            values, sigma, robust = _solve(x, time_s, weight)
            covariance, condition = _uncertainty(x, time_s, weight * robust, sigma)
            best = Fit(knots, values, covariance, sigma, error, condition)
    assert best is not None
    return best


def _solve(x: Floats, time_s: Floats, weight: Floats) -> tuple[Floats, float, Floats]:
    """Return figures, relative standard deviation of a row of weight 1, and robust weights."""
    relative = x / time_s[:, None]
    scale = np.maximum(np.sqrt((relative**2).mean(axis=0)), 1e-300)
    robust = np.ones(len(x))
    values, sigma = np.zeros(x.shape[1]), LEAST_SIGMA
    for _ in range(ROUNDS):
        w = weight * np.sqrt(robust)
        solved, _ = nnls(relative / scale * w[:, None], w)
        values = solved / scale
        residual = (1.0 - relative @ values) * weight
        sigma = max(1.4826 * float(np.median(np.abs(residual))), LEAST_SIGMA)
        new = np.minimum(1.0, HUBER * sigma / np.maximum(np.abs(residual), 1e-300))
        if np.abs(new - robust).max() < 1e-3:
            break
        robust = new
    return values, sigma, np.sqrt(robust)


def _cross_validated(x: Floats, time_s: Floats, weight: Floats, stages: np.ndarray) -> float:
    """Mean absolute relative error of rows whose stages were left out."""
    names = np.unique(stages)
    folds = min(FOLDS, len(names))
    if folds < 2:
        values, _, _ = _solve(x, time_s, weight)
        return float(np.abs(x @ values / time_s - 1.0).mean())
    group = np.searchsorted(names, stages) % folds
    errors = np.empty(len(x))
    for fold in range(folds):
        out = group == fold
        values, _, _ = _solve(x[~out], time_s[~out], weight[~out])
        errors[out] = np.abs(x[out] @ values / time_s[out] - 1.0)
    return float(np.average(errors, weights=weight))


def _uncertainty(x: Floats, time_s: Floats, weight: Floats, sigma: float) -> tuple[Floats, float]:
    """Return the covariance of the figures and the condition number of the scaled design."""
    design = x / time_s[:, None] * weight[:, None]
    scale = np.maximum(np.sqrt((design**2).mean(axis=0)), 1e-300)
    scaled = design / scale
    inverse = np.linalg.pinv(scaled.T @ scaled, rcond=1e-12, hermitian=True)
    covariance = sigma**2 * inverse / np.outer(scale, scale)
    return covariance, float(max(np.linalg.cond(scaled), 1.0))
