"""The ensemble that is right on the most prompts, as a mixed-integer program (arXiv 2509.21091).

    max sum of y_q    s.t.  w in the simplex,  a_r . w >= margin - M_r (1 - y_q) for each row r of q

with a row for each wrong answer of each prompt. A second program keeps the count and maximises the
margin. Big-M values are the smallest valid ones, since a linear form is least at a vertex of the
simplex; rows implied by others and prompts lost under all weights are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.sampling.ensemble import TIE, AnswerRates, limit_correct, margins
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]

STRICT = 1e-3
"""Margin asked for at first: well above the solver's tolerance, so that no tie is taken for right."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Weights and what they attain, counted exactly and not as the solver says."""

    weights: tuple[float, ...]
    correct: int
    """Prompts right in the limit, of those given."""
    bound: int
    """No weights with a margin of 0.001 or more are right on more prompts."""
    margin: float
    """Least lead of the right answer over the prompts that are right, probability."""
    cost: float
    """Mean cost of a sample; nan without costs."""
    proven: bool
    """Whether the count was proven the best and the margin the largest."""
    seconds: float


def ensemble_weights(
    prompts: Sequence[AnswerRates],
    *,
    costs: Sequence[float] | None = None,
    max_cost: float = inf,
    cost_weight: float = 0.0,
    least_correct: int | None = None,
    widest: bool = True,
    time_limit_s: float = 60.0,
    seed: int = 0,
) -> Ensemble:
    """Return the weights right on the most prompts and, among those, of the largest margin.

    ``costs`` are each model's for a sample (seconds, dollars). ``max_cost`` bounds the mean cost.
    ``cost_weight`` is what a unit of mean cost is worth in prompts. ``least_correct`` instead asks
    for the cheapest weights right on so many.

    Raises:
        InputError: no prompts, prompts of different models, or bad costs.
        InfeasibleError: no weights are within ``max_cost`` or right on ``least_correct``.
    """
    _check(prompts, costs, max_cost, cost_weight, least_correct)
    models = prompts[0].rates.shape[0]
    price = np.zeros(models) if costs is None else np.asarray(costs, float)
    if price.min() > max_cost:
        raise InfeasibleError(
            f"max_cost: {max_cost:g} is below the cheapest model's {price.min():g} a sample"
        )
    first = _Count(prompts, price, max_cost, STRICT)
    if least_correct is not None and least_correct > first.most:
        raise InfeasibleError(
            f"least_correct: at most {first.most} prompts can be right under any weights, "
            f"asked for {least_correct}"
        )
    start = _local_search(prompts, price, max_cost) if least_correct is None else None
    weights, bound, optimal, seconds = first.solve(
        cost_weight, least_correct, start, time_limit_s, seed
    )
    correct = limit_correct(prompts, weights)
    if start is not None and cost_weight == 0 and limit_correct(prompts, start) > correct:
        weights, correct = start, limit_correct(prompts, start)
    proven = optimal
    if widest and correct and cost_weight == 0 and least_correct is None:
        wider, optimal, more_s = _widen(prompts, price, max_cost, weights, time_limit_s, seed)
        seconds += more_s
        proven = proven and optimal
        if limit_correct(prompts, wider) >= correct:
            weights, correct = wider, limit_correct(prompts, wider)
    leads = margins(prompts, weights)
    right = leads[leads > TIE]
    return Ensemble(
        tuple(float(weight) for weight in weights), correct, max(bound, correct),
        float(right.min()) if len(right) else 0.0,
        float(price @ weights) if costs is not None else float("nan"), proven, seconds,
    )  # fmt: skip


def cost_frontier(
    prompts: Sequence[AnswerRates], costs: Sequence[float], *, time_limit_s: float = 60.0,
    seed: int = 0,
) -> list[Ensemble]:  # fmt: skip
    """Return the cheapest ensemble for each number of prompts right, cheapest first.

    From the best count downwards: the next ensemble is the best one that costs less.

    Raises:
        InputError: as for :func:`ensemble_weights`.
    """
    options = {"costs": costs, "time_limit_s": time_limit_s, "seed": seed}
    best = ensemble_weights(prompts, widest=False, **options)  # type: ignore[arg-type]
    found: list[Ensemble] = []
    least = min(costs)
    wanted = best.correct
    while wanted > 0:
        point = ensemble_weights(prompts, least_correct=wanted, **options)  # type: ignore[arg-type]
        found.append(point)
        if point.cost <= least * (1 + 1e-6):
            break
        wanted -= 1
    frontier: list[Ensemble] = []
    for point in found:
        if frontier and point.cost >= frontier[-1].cost * (1 - 1e-9):
            continue
        frontier.append(point)
    return frontier[::-1]


class _Count:
    """The program that counts, on the rows that matter."""

    def __init__(
        self, prompts: Sequence[AnswerRates], price: Floats, max_cost: float, margin: float
    ) -> None:
        self.price, self.max_cost, self.margin = price, max_cost, margin
        self.always = 0
        merged: dict[bytes, tuple[Floats, int]] = {}
        for prompt in prompts:
            rows = presolved(prompt.leads, margin)
            if rows is None:
                continue
            if not len(rows):
                self.always += 1
                continue
            _, times = merged.get(rows.tobytes(), (rows, 0))
            merged[rows.tobytes()] = (rows, times + 1)
        self.blocks = [rows for rows, _ in merged.values()]
        self.times = np.array([times for _, times in merged.values()], float)

    @property
    def most(self) -> int:
        """Prompts not lost under all weights."""
        return self.always + int(self.times.sum())

    def solve(
        self, cost_weight: float, least_correct: int | None, start: Floats | None,
        time_limit_s: float, seed: int,
    ) -> tuple[Floats, int, bool, float]:  # fmt: skip
        """Return weights, a bound of the count, whether optimal, and seconds."""
        models = len(self.price)
        cheapest = least_correct is not None
        program = Program(maximize=not cheapest)
        w = program.variables(
            models, cost=self.price if cheapest else -cost_weight * self.price, upper=1.0
        )
        y = program.variables(
            len(self.blocks), cost=0.0 if cheapest else self.times, upper=1.0, integer=True
        )
        program.row(w, lower=1.0, upper=1.0)
        if np.isfinite(self.max_cost):
            program.row(w, self.price, upper=self.max_cost)
        if least_correct is not None and len(self.blocks):
            program.row(y, self.times, lower=float(least_correct - self.always))
        _lead_rows(program, w, y, self.blocks, self.margin)
        point = None
        if start is not None:
            right = [bool((rows @ start >= self.margin).all()) for rows in self.blocks]
            point = np.concatenate([start, np.array(right, float)])
        solution = program.solve(time_limit_s=time_limit_s, start=point, seed=seed)
        if solution.status == "infeasible":
            raise InfeasibleError(
                f"least_correct: no weights are right on {least_correct} prompts"
                + (f" at a mean cost of {self.max_cost:g}" if np.isfinite(self.max_cost) else "")
            )
        if not len(solution.values):
            if start is None:
                raise InfeasibleError(
                    f"no weights found within {time_limit_s:g} s; raise time_limit_s"
                )
            return start, self.most, False, solution.seconds
        weights = _on_simplex(solution.values[:models])
        # A unit of cost is worth something only where costs enter the objective.
        loosest = cost_weight * float(self.price.max())
        bound = self.most if cheapest else self.always + int(solution.bound + loosest + 1e-6)
        return weights, bound, solution.status == "optimal", solution.seconds


def _lead_rows(
    program: Program, w: NDArray[np.int64], y: NDArray[np.int64], blocks: Sequence[Floats],
    margin: float,
) -> None:  # fmt: skip
    """Add ``a . w - M y >= margin - M`` for every row of every block."""
    if not blocks:
        return
    rows = np.vstack(blocks)
    owner = np.repeat(y, [len(block) for block in blocks])
    big = np.maximum(margin - rows.min(axis=1), 0.0)
    number = np.arange(len(rows))
    at = np.concatenate([np.repeat(number, len(w)), number])
    of = np.concatenate([np.tile(w, len(rows)), owner])
    program.rows(at, of, np.concatenate([rows.ravel(), -big]), lower=margin - big)


def presolved(leads: Floats, margin: float, most: float | None = None) -> Floats | None:
    """Return the rows that can decide a prompt; None where it is lost under all weights.

    Rows of at least ``most`` (the margin unless given) under all weights go, and so do rows that
    another is nowhere above.
    """
    if (leads.max(axis=1) < margin).any():
        return None
    rows = np.unique(leads[leads.min(axis=1) < (margin if most is None else most)], axis=0)
    below: NDArray[np.bool_] = np.asarray((rows[:, None, :] <= rows[None, :, :]).all(axis=2))
    np.fill_diagonal(below, False)
    kept: Floats = np.ascontiguousarray(rows[~below.any(axis=0)])
    return kept


def _widen(
    prompts: Sequence[AnswerRates], price: Floats, max_cost: float, weights: Floats,
    time_limit_s: float, seed: int,
) -> tuple[Floats, bool, float]:  # fmt: skip
    """Return weights right on as many prompts, of the largest margin; whether proven; seconds."""
    models = len(weights)
    leads = margins(prompts, weights)
    right = leads > TIE
    correct = int(right.sum())
    # The margin of the least certain prompt is at most what that many prompts can each have alone.
    alone = sorted((float(p.leads.max(axis=1).min()) for p in prompts), reverse=True)
    most = alone[correct - 1]
    blocks, chosen = [], []
    for prompt, is_right in zip(prompts, right, strict=True):
        rows = presolved(prompt.leads, TIE, most)
        if rows is not None:
            blocks.append(rows)
            chosen.append(float(is_right))
    program = Program(maximize=True)
    w = program.variables(models, upper=1.0)
    margin = program.variables(1, cost=1.0, upper=most)
    y = program.variables(len(blocks), upper=1.0, integer=True)
    program.row(w, lower=1.0, upper=1.0)
    if np.isfinite(max_cost):
        program.row(w, price, upper=max_cost)
    program.row(y, lower=float(correct))
    rows = np.vstack(blocks)
    owner = np.repeat(y, [len(block) for block in blocks])
    big = np.maximum(most - rows.min(axis=1), 0.0)
    number = np.arange(len(rows))
    at = np.concatenate([np.repeat(number, models), number, number])
    of = np.concatenate([np.tile(w, len(rows)), np.repeat(margin, len(rows)), owner])
    worth = np.concatenate([rows.ravel(), np.full(len(rows), -1.0), -big])
    program.rows(at, of, worth, lower=-big)
    start = np.concatenate([weights, [max(float(leads[right].min()), 0.0)], chosen])
    solution = program.solve(time_limit_s=time_limit_s, start=start, seed=seed)
    if not len(solution.values):
        return weights, False, solution.seconds
    return _on_simplex(solution.values[:models]), solution.status == "optimal", solution.seconds


def _local_search(prompts: Sequence[AnswerRates], price: Floats, max_cost: float) -> Floats:
    """Return good weights: the best model, then shares of 1/20 moved while that helps."""
    models = len(price)
    leads = np.vstack([prompt.leads for prompt in prompts])
    first = np.cumsum([0, *(len(prompt.leads) for prompt in prompts)])[:-1]

    def worth(weights: Floats) -> tuple[int, float]:
        if price @ weights > max_cost:
            return -1, 0.0
        least = np.minimum.reduceat(leads @ weights, first)
        return int((least >= STRICT).sum()), float(least[least >= STRICT].sum())

    corners = np.eye(models)
    best: Floats = corners[max(range(models), key=lambda i: worth(corners[i]))]
    value = worth(best)
    while True:
        moves = [
            best + step * (corners[i] - corners[j])
            for step in (0.05, 0.2) for i in range(models) for j in range(models)
            if i != j and best[j] >= step - 1e-12
        ]  # fmt: skip
        scored = [(worth(move), k) for k, move in enumerate(moves)]
        top = max(scored, default=(value, -1))
        if top[0] <= value:
            return _on_simplex(best)
        value, best = top[0], moves[top[1]]


def _on_simplex(weights: Floats) -> Floats:
    positive = np.maximum(weights, 0.0)
    scaled: Floats = positive / positive.sum()
    return scaled


def _check(
    prompts: Sequence[AnswerRates], costs: Sequence[float] | None, max_cost: float,
    cost_weight: float, least_correct: int | None,
) -> None:  # fmt: skip
    if not prompts:
        raise InputError("prompts: at least one is needed")
    models = prompts[0].rates.shape[0]
    if any(prompt.rates.shape[0] != models for prompt in prompts):
        raise InputError("prompts: all must have rates of the same models")
    if costs is not None:
        price = np.asarray(costs, float)
        if price.shape != (models,) or not np.isfinite(price).all() or (price < 0).any():
            raise InputError(
                f"costs: expected {models} finite figures, none negative, got {list(costs)}"
            )
    elif np.isfinite(max_cost) or cost_weight or least_correct is not None:
        raise InputError("costs: needed with max_cost, cost_weight or least_correct")
    if not cost_weight >= 0:
        raise InputError(f"cost_weight: must not be negative, got {cost_weight}")
