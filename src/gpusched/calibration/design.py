"""Which stages to run: a D-optimal choice within a time budget, by greedy start and exchange.

The information of a stage is ``sum of x x' / T^2`` over its iterations, with ``x`` the aggregates that
the fit uses and ``T`` their time as a pilot fit knows it; the choice makes the determinant of the sum
large, so the ellipsoid of confidence small. Every stage has a price in seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpusched.calibration.fit import STRAIGHT, Fit, Tables, features
from gpusched.calibration.rows import Row, chunks
from gpusched.calibration.stage import Floats, Stage

PROBES = 3
PROBE = 8
"""Tokens of the shortest probe."""
SPACE = 6
"""Decode iterations that a probe takes up around it."""
PRIOR = 1e-6
"""Information assumed beforehand, relative to what all candidates hold: keeps determinants positive."""
HEADROOM = 0.9
"""Share of the KV cache that a stage may use."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine allows."""

    max_num_seqs: int
    max_model_len: int
    kv_tokens: int | None
    budget: int
    """Tokens of an iteration."""
    pace: int = 1
    """Of stages."""


def candidates(limits: Limits) -> list[Stage]:
    """Return the stages to choose from: batches, contexts and prompts spread by factors of two."""
    found = []
    longest = limits.max_model_len
    for batch in batches(limits.max_num_seqs):
        for prompt in ladder(16, max(longest // 2, 16), 4.0):
            for probe in ladder(PROBE, min(longest - 2, 4 * limits.budget), 2.0):
                probes = (probe,) * PROBES if batch < limits.max_num_seqs else ()
                if not probes and probe != PROBE:
                    continue
                output = 8 + SPACE * limits.pace * (len(probes) or 4) + 8
                tokens = batch * (prompt + output) + (probe if probes else 0)
                room = limits.kv_tokens is None or tokens <= HEADROOM * limits.kv_tokens
                if prompt + output <= longest and room:
                    found.append(Stage(batch, prompt, output, probes, pace=limits.pace))
    return found


def ladder(low: int, high: int, factor: float) -> list[int]:
    """Return whole numbers from ``low`` to ``high``, each ``factor`` times the one before, both ends
    included."""
    steps = max(round(float(np.log(high / low) / np.log(factor))), 1) if high > low else 0
    return sorted({round(float(v)) for v in np.geomspace(low, high, steps + 1)}) if steps else [low]


def expected_rows(stage: Stage, budget: int) -> list[Row]:
    """Return the rows that a stage should give, without times."""
    b = stage.batch
    context = b * (stage.prompt_tokens + stage.output_tokens / 2)
    plain = max(stage.output_tokens - 8 - 2 * len(stage.probes), 1)
    rows = [Row(0, (b,) * plain, b, context, 0.0, 0.0, 0.0, 0, 0, b)]
    for probe in stage.probes:
        pieces = chunks(probe, max(budget - b, 1))
        pairs = sum(_pairs(new, past) for new, past in pieces) / len(pieces)
        tokens = tuple(b + new for new, _ in pieces)
        rows.append(Row(0, tokens, b + 1 / len(pieces), context, 1.0, pairs, 0.0, 0, probe, b))
    return rows


def batches(limit: int) -> list[int]:
    """Return the batch sizes to measure: small ones all, since kernels change from one to the next."""
    return sorted({*range(1, min(limit, 8) + 1), *ladder(min(limit, 8), limit, 1.5)})


def finest_tables(limits: Limits) -> Tables:
    """Return the finest tables that the fit may choose, so that the experiment can tell whether time
    bends between batch sizes."""
    top = min(limits.budget, limits.max_model_len)
    knots = {*ladder(PROBE + 1, min(STRAIGHT, top), 2.0), max(top, PROBE + 2)}
    return Tables(tuple(batches(limits.max_num_seqs)), tuple(sorted(knots)))


def _pairs(new: int, past: int) -> float:
    return new * past + new * (new + 1) / 2


def information(stage: Stage, pilot: Fit, limits: Limits) -> Floats:
    """Return the information matrix of a stage about the figures of the finest table.

    The decode-only iterations of a stage share its disturbances, so all of them count as two rows.
    """
    rows = expected_rows(stage, limits.budget)
    x = features(rows, finest_tables(limits))
    time_s = np.maximum(pilot.predict_s(rows), 1e-9)
    weight = np.array([2.0 if row.prompts == 0 else 1.0 for row in rows])
    relative = x / time_s[:, None]
    return np.asarray((relative * weight[:, None]).T @ relative)


def cost_s(stage: Stage, pilot: Fit, budget: int, overhead_s: float = 0.05) -> float:
    """Return how long a stage takes."""
    b = stage.batch
    rows = expected_rows(stage, budget)
    time_s = pilot.predict_s(rows)
    together = max(min(budget // stage.prompt_tokens, b), 1)
    start = [
        Row(0, (together * new,), together, 0.0, 1.0, together * _pairs(new, past), 0.0, 0)
        for new, past in chunks(stage.prompt_tokens, budget)
    ]
    first_s = float(pilot.predict_s(start).sum()) * -(-b // together)
    steps = sum(len(row.tokens) * t for row, t in zip(rows, time_s, strict=True))
    return float(steps + first_s + overhead_s)


def log_determinant(matrix: Floats) -> float:
    """Return the logarithm of a positive determinant, -inf otherwise."""
    sign, value = np.linalg.slogdet(matrix)
    return float(value) if sign > 0 else -np.inf


def choose(
    stages: Sequence[Stage], pilot: Fit, limits: Limits, seconds: float, seed: int = 0,
    known: Floats | None = None,
) -> list[Stage]:  # fmt: skip
    """Return a selection of stages, with repetitions, that tells most within ``seconds``.

    ``known``: information that earlier stages gave. The order is drawn at random, so that a slow drift
    of the machine does not pass for an effect.
    """
    costs = np.array([cost_s(stage, pilot, limits.budget) for stage in stages])
    affordable = np.flatnonzero(costs <= seconds)
    if not len(affordable):
        return [stages[int(np.argmin(costs))]]
    infos = np.stack([information(stage, pilot, limits) for stage in stages])
    scale = np.sqrt(np.maximum(np.einsum("nii->i", infos) / len(infos), 1e-300))
    infos = infos / np.outer(scale, scale)
    total = PRIOR * np.eye(len(scale))
    if known is not None:
        total = total + known / np.outer(scale, scale)
    chosen: list[int] = []
    spent = 0.0
    while True:
        fits = affordable[costs[affordable] <= seconds - spent]
        if not len(fits):
            break
        gain = _log_determinants(total + infos[fits]) - log_determinant(total)
        best = int(fits[int(np.argmax(gain / costs[fits]))])
        chosen.append(best)
        total = total + infos[best]
        spent += float(costs[best])
    _exchange(chosen, total, infos, costs, seconds)
    order = np.random.default_rng(seed).permutation(len(chosen))
    return [stages[chosen[i]] for i in order]


def _exchange(
    chosen: list[int], total: Floats, infos: Floats, costs: Floats, seconds: float
) -> None:
    """Swap chosen stages for others while that raises the determinant within the budget."""
    improved = True
    while improved:
        improved = False
        for at in range(len(chosen)):
            spent = float(costs[chosen].sum())
            without = total - infos[chosen[at]]
            fits = np.flatnonzero(costs <= seconds - spent + costs[chosen[at]])
            value = _log_determinants(without + infos[fits])
            best = int(np.argmax(value))
            if value[best] > log_determinant(total) + 1e-9:
                chosen[at] = int(fits[best])
                total = without + infos[chosen[at]]
                improved = True


def _log_determinants(matrices: Floats) -> Floats:
    sign, value = np.linalg.slogdet(matrices)
    return np.where(sign > 0, value, -np.inf)
