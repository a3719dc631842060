"""From measured iterations to the figures of a timing file.

Relative errors are made small: rows are divided by their times, figures are non-negative, rows far off
count less (Huber), and of several tables over batch sizes the one that predicts best what it was not
fitted to is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from gpusched.calibration.rows import Row
from gpusched.calibration.stage import Floats
from gpusched.errors import InputError

HUBER = 1.5
"""Standard deviations beyond which a row counts less."""
ROUNDS = 12
FOLDS = 5
BETTER = 1.01
"""A finer table is taken unless it raises the cross-validated error beyond this share."""
CONFIDENCE = 1.96
MOST_STRETCH = 1.5
STRAIGHT = 300
"""Tokens from which time is linear in them, but for attention: weights are read by then."""
OTHERS = ("sequence_s", "context_s", "pair_s")
LEAST_SIGMA = 1e-4
"""Relative; a clock's own error."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Batch sizes whose times are figures of the fit; linear between them."""

    decode: tuple[int, ...]
    """Of decodes alone, from 1."""
    tokens: tuple[int, ...]
    """Of iterations with prompts."""

    @property
    def names(self) -> tuple[str, ...]:
        """Columns of the design."""
        return (
            *OTHERS,
            *(f"decode_s[{i}]" for i in range(len(self.decode))),
            *(f"tokens_s[{i}]" for i in range(len(self.tokens))),
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """Figures by the names of ``tables``, seconds, with their uncertainty."""

    tables: Tables
    values: Floats
    covariance: Floats
    sigma: float
    """Relative standard deviation of a row."""
    error: float
    """Mean absolute relative error of rows of stages left out of the fit."""
    condition: float
    stretch: float = 1.0
    """Mean of times over what they are undisturbed; the figures are multiplied by it."""

    @property
    def decode_s(self) -> Floats:
        """Times of ``tables.decode``."""
        return self.values[len(OTHERS) : len(OTHERS) + len(self.tables.decode)]

    @property
    def tokens_s(self) -> Floats:
        """Times of ``tables.tokens``."""
        return self.values[len(OTHERS) + len(self.tables.decode) :]

    def figure(self, name: str) -> float:
        """Return one of the figures named in ``OTHERS``."""
        return float(self.values[OTHERS.index(name)])

    def predict_s(self, rows: Sequence[Row]) -> Floats:
        """Return the times of rows."""
        return np.asarray(features(rows, self.tables) @ self.values)


def features(rows: Sequence[Row], tables: Tables) -> Floats:
    """Return the design matrix, shape (rows, figures)."""
    found = np.zeros((len(rows), len(tables.names)))
    first = len(OTHERS)
    middle = first + len(tables.decode)
    for x, row in zip(found, rows, strict=True):
        if row.prompts > 0:
            x[:first] = (row.sequences, row.context_tokens, row.pairs)
            x[middle:] = hats(row.tokens, tables.tokens)
        else:
            x[:first] = (0.0, row.context_tokens, 0.0)
            x[first:middle] = hats((row.batch,), tables.decode)
    return found


def hats(sizes: Sequence[int], knots: tuple[int, ...]) -> Floats:
    """Return the weights of a table's entries in the mean of its values at the given sizes; on by the
    last slope beyond its end."""
    weights = np.zeros(len(knots))
    for size in sizes:
        at = int(np.searchsorted(knots, size))
        if at == 0 or len(knots) == 1:
            weights[0] += 1.0
            continue
        at = min(at, len(knots) - 1)
        share = (size - knots[at - 1]) / (knots[at] - knots[at - 1])
        weights[at - 1] += 1.0 - share
        weights[at] += share
    return np.asarray(weights / len(sizes))


def candidate_tables(rows: Sequence[Row]) -> list[Tables]:
    """Return tables to choose from, coarse to fine, with entries where rows can tell them."""
    batches = sorted({row.batch for row in rows if row.prompts == 0} | {1})
    sizes = sorted({n for row in rows if row.prompts > 0 for n in row.tokens})
    found = []
    for factor in (8.0, 4.0, 2.0):
        tokens = [sizes[0]]
        for size in sizes[1:]:
            if size >= factor * tokens[-1] * 0.9 and size <= STRAIGHT:
                tokens.append(size)
        if sizes[-1] > tokens[-1]:
            tokens.append(sizes[-1])
        found.append(Tables(tuple(batches), tuple(tokens)))
    return list(dict.fromkeys(found))


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
    for tables in candidate_tables(rows):
        x = features(rows, tables)
        least = _least(tables, rows)
        error = _cross_validated(x, time_s, weight, stages, least)
        if best is None or error < BETTER * best.error:
            values, sigma, robust = _solve(x, time_s, weight, least)
            covariance, condition = _uncertainty(x, time_s, weight * robust, sigma)
            stretch = _stretch(x @ values, rows)
            best = Fit(
                tables, stretch * values, stretch**2 * covariance, sigma, error, condition, stretch
            )
    assert best is not None
    return best


def _stretch(predicted_s: Floats, rows: Sequence[Row]) -> float:
    """Return by how much disturbances lengthen iterations on average: robust figures are those of an
    iteration that nothing disturbs, and requests meet both kinds."""
    mean_s = np.array([row.mean_s for row in rows])
    weight = np.array([row.iterations if row.prompts == 0 else 1 for row in rows], np.float64)
    return float(np.clip(np.average(mean_s / predicted_s, weights=weight), 1.0, MOST_STRETCH))


def _least(tables: Tables, rows: Sequence[Row]) -> Floats:
    """Return bounds from below: nothing is negative, and no batch takes less than half of what the
    fastest of its kind took."""
    least = np.zeros(len(tables.names))
    middle = len(OTHERS) + len(tables.decode)
    decode_s = [row.time_s for row in rows if row.prompts == 0]
    tokens_s = [row.time_s for row in rows if row.prompts > 0]
    least[len(OTHERS) : middle] = 0.5 * min(decode_s)
    least[middle:] = 0.5 * min(tokens_s)
    return least


def _solve(
    x: Floats, time_s: Floats, weight: Floats, least: Floats
) -> tuple[Floats, float, Floats]:
    """Return figures, relative standard deviation of a row of weight 1, and robust weights."""
    relative = x / time_s[:, None]
    scale = np.maximum(np.sqrt((relative**2).mean(axis=0)), 1e-300)
    robust = np.ones(len(x))
    values, sigma = np.zeros(x.shape[1]), LEAST_SIGMA
    for _ in range(ROUNDS):
        w = weight * np.sqrt(robust)
        solved, _ = nnls(relative / scale * w[:, None], w * (1.0 - relative @ least))
        values = least + solved / scale
        residual = (1.0 - relative @ values) * weight
        sigma = max(1.4826 * float(np.median(np.abs(residual))), LEAST_SIGMA)
        new = np.minimum(1.0, HUBER * sigma / np.maximum(np.abs(residual), 1e-300))
        if np.abs(new - robust).max() < 1e-3:
            break
        robust = new
    return values, sigma, np.sqrt(robust)


def _cross_validated(
    x: Floats, time_s: Floats, weight: Floats, stages: NDArray[np.int64], least: Floats
) -> float:
    """Mean absolute relative error of rows whose stages were left out."""
    names = np.unique(stages)
    folds = min(FOLDS, len(names))
    if folds < 2:
        values, _, _ = _solve(x, time_s, weight, least)
        return float(np.abs(x @ values / time_s - 1.0).mean())
    group = np.searchsorted(names, stages) % folds
    errors = np.empty(len(x))
    for fold in range(folds):
        out = group == fold
        values, _, _ = _solve(x[~out], time_s[~out], weight[~out], least)
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
