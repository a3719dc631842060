"""The published program read literally: every worker of a phase gets as many tasks as any other.

``Z >= tau(n)`` for every degree in use, with ``tau(n) = L T(n) / X`` for ``L`` tasks among ``X``
workers. The slowest degree in use decides; replacing every worker by the smallest kind in use is then
no slower and takes no more GPUs. So an optimum uses one degree a phase, and with ``m`` GPUs a phase
takes ``min over n of L T(n) / floor(m / n)``: no solver is needed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EvenSplit:
    """Workers of each degree in each phase and the time of the slower phase."""

    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    time_s: float


def even_split(
    size: ArrayLike,
    prefill_s: ArrayLike,
    decode_s: ArrayLike,
    tasks: tuple[float, float],
    gpus: int,
) -> EvenSplit:
    """Return the best split under even shares.

    ``prefill_s`` and ``decode_s`` are the times of a task on a worker of each size, ``tasks`` how many
    of each there are; an infinite time forbids a kind.

    Raises:
        InfeasibleError: no two workers fit.
    """
    sizes = np.asarray(size, np.int64)
    tables = [
        _phase_s(sizes, load * np.asarray(time_s, np.float64), gpus)
        for time_s, load in zip((prefill_s, decode_s), tasks, strict=True)
    ]
    slower = np.maximum(tables[0][0], tables[1][0][::-1])
    used = int(slower.argmin())
    if not np.isfinite(slower[used]):
        raise InfeasibleError(f"{gpus} GPUs are too few for a prefill and a decode worker")
    counts = []
    for (_, kind), m in zip(tables, (used, gpus - used), strict=True):
        workers = [0] * len(sizes)
        workers[kind[m]] = m // int(sizes[kind[m]])
        counts.append(tuple(workers))
    return EvenSplit(counts[0], counts[1], float(slower[used]))


def _phase_s(sizes: Ints, whole_s: Floats, gpus: int) -> tuple[Floats, Ints]:
    """Return the least time of a phase with 0, 1, ... GPUs and the kind that takes it."""
    workers = np.arange(gpus + 1)[:, None] // sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        time_s = np.where(workers > 0, whole_s / workers, np.inf)
    return time_s.min(axis=1), time_s.argmin(axis=1)


def phase_program(sizes: Ints, whole_s: Floats, workers: int, gpus: int) -> tuple[Program, Ints]:
    """Return the literal program of one phase for a given number of workers, and its variables.

    A binary for each degree says whether it is in use and so may hold up the phase.
    """
    program = Program()
    allowed = np.isfinite(whole_s)
    counts = program.variables(len(sizes), upper=np.where(allowed, workers, 0), integer=True)
    in_use = program.variables(len(sizes), upper=1, integer=True)
    slowest = int(program.variables(1, cost=1.0)[0])
    for n in range(len(sizes)):
        program.row([counts[n], in_use[n]], [1.0, -float(workers)], upper=0.0)
        program.row([in_use[n], counts[n]], [1.0, -1.0], upper=0.0)
        share_s = float(whole_s[n]) / workers if allowed[n] else 0.0
        program.row([slowest, in_use[n]], [1.0, -share_s], lower=0.0)
    program.row(counts, lower=float(workers), upper=float(workers))
    program.row(counts, sizes.astype(np.float64), upper=float(gpus))
    return program, counts
