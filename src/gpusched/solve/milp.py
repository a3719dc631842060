"""Sparse mixed-integer linear programs, built from arrays and solved by HiGHS."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import highspy
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array

Status = Literal["optimal", "feasible", "infeasible", "no solution found", "unbounded"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Incumbent:
    """Where a running branch-and-bound stands."""

    seconds: float
    objective: float
    """Of the best solution so far; infinitely bad if there is none."""
    bound: float
    """No solution is better."""
    since_better_s: float
    """Time since the objective last improved."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found and what it proved."""

    status: Status
    objective: float
    """Of ``values``; infinitely bad without a solution."""
    bound: float
    """No feasible point is better."""
    values: Floats
    """Of the variables, in their order; empty without a solution."""
    seconds: float
    nodes: int

    @property
    def gap(self) -> float:
        """``|objective - bound| / |objective|``; infinite without a solution."""
        if not len(self.values) or not np.isfinite(self.bound):
            return np.inf
        difference = abs(self.objective - self.bound)
        return 0.0 if difference == 0 else difference / max(abs(self.objective), 1e-12)


class Program:
    """A linear program with integer variables, to be minimised unless ``maximize``.

    Variables and rows come in blocks of arrays; a block's variables are known by their numbers.
    """

    def __init__(self, *, maximize: bool = False) -> None:
        self.maximize = maximize
        self._costs: list[Floats] = []
        self._lower: list[Floats] = []
        self._upper: list[Floats] = []
        self._integer: list[NDArray[np.bool_]] = []
        self._columns = 0
        self._entries: list[tuple[Ints, Ints, Floats]] = []
        self._row_lower: list[Floats] = []
        self._row_upper: list[Floats] = []
        self._rows = 0

    def variables(
        self,
        shape: int | tuple[int, ...],
        *,
        cost: ArrayLike = 0.0,
        lower: ArrayLike = 0.0,
        upper: ArrayLike = np.inf,
        integer: bool = False,
    ) -> Ints:
        """Add variables and return their numbers, in ``shape``; bounds and costs broadcast to it."""
        numbers = self._columns + np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        for store, value in ((self._costs, cost), (self._lower, lower), (self._upper, upper)):
            store.append(np.broadcast_to(np.asarray(value, np.float64), numbers.shape).ravel())
        self._integer.append(np.full(numbers.size, integer))
        self._columns += numbers.size
        return numbers

    def rows(
        self,
        row: ArrayLike,
        column: ArrayLike,
        value: ArrayLike,
        *,
        lower: ArrayLike = -np.inf,
        upper: ArrayLike = np.inf,
        count: int | None = None,
    ) -> Ints:
        """Add ``lower <= sum of value x variable <= upper`` and return the rows' numbers.

        ``row`` counts the block's rows from 0; ``row``, ``column`` and ``value`` broadcast together,
        and entries at the same place add up. ``count`` is the number of rows where the last ones
        may have no entry.
        """
        at, of, worth = (
            np.ravel(array)
            for array in np.broadcast_arrays(
                np.asarray(row, np.int64),
                np.asarray(column, np.int64),
                np.asarray(value, np.float64),
            )
        )
        size = count if count is not None else int(at.max(initial=-1)) + 1
        self._entries.append((at + self._rows, of, worth))
        for store, bound in ((self._row_lower, lower), (self._row_upper, upper)):
            store.append(np.broadcast_to(np.asarray(bound, np.float64), (size,)))
        self._rows += size
        return np.arange(self._rows - size, self._rows)

    def row(
        self,
        column: ArrayLike,
        value: ArrayLike = 1.0,
        *,
        lower: float = -np.inf,
        upper: float = np.inf,
    ) -> int:
        """Add one row and return its number."""
        return int(self.rows(0, column, value, lower=lower, upper=upper, count=1)[0])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and variables."""
        return self._rows, self._columns

    def solve(
        self,
        *,
        time_limit_s: float = 60.0,
        relative_gap: float = 1e-6,
        start: Floats | None = None,
        stop: Callable[[Incumbent], bool] | None = None,
        relax: bool = False,
        threads: int = 1,
        seed: int = 0,
    ) -> Solution:
        """Return the best solution within the limits; running out of time is not an error.

        ``start`` is a point to start from, nan where unknown. ``stop`` is asked now and then during
        branch and bound whether the solution is good enough. ``relax`` drops integrality.
        """
        begun = perf_counter()
        integer = np.concatenate(self._integer) if self._integer else np.zeros(0, bool)
        integer = integer & (not relax)
        solver = _Quiet()
        # its threads are the process's, and refuse another number of them
        solver.resetGlobalScheduler(True)
        for option, value in (
            ("output_flag", False), ("time_limit", max(time_limit_s, 0.01)),
            ("mip_rel_gap", relative_gap), ("threads", threads), ("random_seed", seed),
        ):  # fmt: skip
            solver.setOptionValue(option, value)
        solver.passModel(self._model(integer))
        if start is not None:
            known = np.flatnonzero(~np.isnan(start)).astype(np.int32)
            solver.setSolution(len(known), known, start[known])
        if stop is not None and integer.any():
            _watch(solver, stop, self.maximize)
        solver.run()
        return self._solution(solver, bool(integer.any()), perf_counter() - begun)

    def _model(self, integer: NDArray[np.bool_]) -> Any:
        none = np.zeros(0)
        at = np.concatenate([np.zeros(0, np.int64), *(entry[0] for entry in self._entries)])
        of = np.concatenate([np.zeros(0, np.int64), *(entry[1] for entry in self._entries)])
        worth = np.concatenate([none, *(entry[2] for entry in self._entries)])
        matrix = coo_array((worth, (at, of)), (self._rows, self._columns)).tocsc()
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self._columns, self._rows
        model.sense_ = highspy.ObjSense.kMaximize if self.maximize else highspy.ObjSense.kMinimize
        model.col_cost_ = np.concatenate([none, *self._costs])
        model.col_lower_ = np.concatenate([none, *self._lower])
        model.col_upper_ = np.concatenate([none, *self._upper])
        model.row_lower_ = np.concatenate([none, *self._row_lower])
        model.row_upper_ = np.concatenate([none, *self._row_upper])
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = matrix.indptr.astype(np.int32)
        model.a_matrix_.index_ = matrix.indices.astype(np.int32)
        model.a_matrix_.value_ = matrix.data
        if integer.any():
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[int(whole)] for whole in integer]
        return model

    def _solution(self, solver: Any, is_integer: bool, seconds: float) -> Solution:
        worst = -np.inf if self.maximize else np.inf
        status, info = solver.getModelStatus(), solver.getInfo()
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        if status == highspy.HighsModelStatus.kOptimal:
            word: Status = "optimal"
        elif status == highspy.HighsModelStatus.kInfeasible:
            word, found = "infeasible", False
        elif status in (
            highspy.HighsModelStatus.kUnbounded,
            highspy.HighsModelStatus.kUnboundedOrInfeasible,
        ):
            word, found = "unbounded", False
        else:
            word = "feasible" if found else "no solution found"
        objective = float(info.objective_function_value) if found else worst
        bound = float(info.mip_dual_bound) if is_integer else -worst
        if word == "optimal" and not is_integer:
            bound = objective
        if word == "infeasible":
            bound = worst
        values = np.array(solver.getSolution().col_value) if found else np.zeros(0)
        nodes = int(info.mip_node_count) if is_integer else 0
        return Solution(word, objective, bound, values, seconds, nodes)


def _watch(solver: Any, stop: Callable[[Incumbent], bool], maximize: bool) -> None:
    worst = -np.inf if maximize else np.inf
    best, better_s = worst, 0.0

    def look(event: Any) -> None:
        nonlocal best, better_s
        out = event.data_out
        objective = out.mip_primal_bound
        objective = worst if abs(objective) >= highspy.kHighsInf else objective
        if objective != best:
            best, better_s = objective, out.running_time
        seen = Incumbent(
            out.running_time, objective, out.mip_dual_bound, out.running_time - better_s
        )
        if stop(seen):
            event.interrupt()

    highspy.Highs.enableCallbacks(solver)
    solver.cbMipInterrupt += look


class _Quiet(highspy.Highs):
    """A solver that leaves standard output alone: switching callbacks on prints a banner."""

    def enableCallbacks(self) -> None:  # noqa: N802
        """Leave them off until they are asked for."""
