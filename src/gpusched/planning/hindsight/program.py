"""The time-indexed program (A1)-(A4) on HiGHS, plain or with level rows and only useful completions."""

from collections.abc import Sequence

import highspy
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, vstack

from gpusched.planning.hindsight.levels import level_weights
from gpusched.policies.batching.rounds import Ints


def time_indexed_program(
    a: Ints,
    s: Ints,
    o: Ints,
    kv_tokens: int,
    allowed: NDArray[np.bool_],
    limit_s: float,
    threads: int,
    seed: int,
    levels: Sequence[int] = (),
) -> tuple[Ints | None, float]:
    """Return the starts of the best schedule found, None if there is none, and a bound of the sum of
    completions, infinite if no schedule keeps to ``allowed``.

    ``allowed`` tells in which rounds requests may complete, shape (requests, rounds). Requests alike
    are one integer variable a round.
    """
    kinds, first, kind_of, count = np.unique(
        np.stack([a, s, o]), axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    _, prompt, output = kinds
    may = np.zeros((len(first), allowed.shape[1]), bool)
    np.logical_or.at(may, kind_of.ravel(), allowed)
    who, when = np.nonzero(may)
    columns = len(who)
    longest = int(output.max())
    held = np.maximum(np.arange(1 - longest, 1) + output[:, None], 0)
    held = np.where(held > 0, held + prompt[:, None], 0)
    rows = [(held, longest - 1, kv_tokens)]
    rows += [(*level_weights(prompt, output, kv_tokens, q), q - 1) for q in levels]
    blocks = [coo_array((np.ones(columns), (who, np.arange(columns))), (len(first), columns))]
    rooms = [count]
    for weights, before, room in rows:
        entry, offset = np.nonzero(weights[who])
        at = when[entry] + offset - before
        shape = (int(at.max(initial=0)) + 1, columns)
        blocks.append(
            coo_array((weights[who[entry], offset].astype(np.float64), (at, entry)), shape)
        )
        rooms.append(np.full(shape[0], room))
    matrix = vstack(blocks, format="csc")
    upper = np.concatenate(rooms).astype(np.float64)
    lower = np.where(np.arange(len(upper)) < len(first), upper, -highspy.kHighsInf)

    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = columns, len(upper)
    program.col_cost_ = when.astype(np.float64)
    program.col_lower_ = np.zeros(columns)
    program.col_upper_ = count[who].astype(np.float64)
    program.row_lower_, program.row_upper_ = lower, upper
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_ = matrix.indptr
    program.a_matrix_.index_ = matrix.indices
    program.a_matrix_.value_ = matrix.data
    program.integrality_ = [highspy.HighsVarType.kInteger] * columns
    solver = _Quiet()
    # its threads are the process's, and refuse another number of them
    solver.resetGlobalScheduler(True)
    solver.setOptionValue("output_flag", False)
    for option, value in (
        ("time_limit", max(limit_s, 0.1)), ("mip_rel_gap", 0.0), ("threads", threads),
        ("random_seed", seed),
    ):  # fmt: skip
        solver.setOptionValue(option, value)
    solver.passModel(program)
    status = solver.run()
    assert status != highspy.HighsStatus.kError
    if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return None, np.inf
    info = solver.getInfo()
    bound = float(info.mip_dual_bound)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None, bound
    repeats = np.rint(solver.getSolution().col_value).astype(np.int64)
    times, owners = np.repeat(when, repeats), np.repeat(who, repeats)
    completions = np.empty(len(a), np.int64)
    completions[np.argsort(kind_of.ravel(), kind="stable")] = times[
        np.argsort(owners, kind="stable")
    ]
    return completions - o, bound


class _Quiet(highspy.Highs):
    """A solver that leaves standard output alone: switching callbacks on prints a banner."""

    def enableCallbacks(self) -> None:  # noqa: N802
        """Leave them off."""
