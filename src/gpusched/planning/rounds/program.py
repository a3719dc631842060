"""The split of workers between the phases as integer programs on HiGHS."""

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.rounds.nodes import nested, node_patterns
from gpusched.planning.rounds.problem import SplitProblem
from gpusched.solve.milp import Program

Ints = NDArray[np.int64]


def split_program(problem: SplitProblem) -> tuple[Program, Ints, Ints]:
    """Return the program that maximises the multiple ``u`` of the load (A-1 to A-9), and the
    numbers of its variables: workers that prefill and that decode."""
    program = Program(maximize=True)
    prefill, decode = _workers(program, problem, 0.0)
    u = int(program.variables(1, cost=1.0)[0])
    for workers, speed, load in _phases(problem, prefill, decode):
        program.row(np.append(workers, u), np.append(speed, -load), lower=0.0)
        program.row(workers, lower=1.0)
    return program, prefill, decode


def cheapest_program(
    problem: SplitProblem, price: NDArray[np.float64], capacity: float
) -> tuple[Program, Ints, Ints]:
    """Return the program that minimises the price of workers that carry ``capacity`` times the load."""
    program = Program()
    prefill, decode = _workers(program, problem, price)
    for workers, speed, load in _phases(problem, prefill, decode):
        program.row(workers, speed, lower=capacity * load)
        program.row(workers, lower=1.0)
    return program, prefill, decode


def _phases(
    problem: SplitProblem, prefill: Ints, decode: Ints
) -> tuple[tuple[Ints, NDArray[np.float64], float], ...]:
    return (
        (prefill, problem.prefill_speed, problem.prefill_load),
        (decode, problem.decode_speed, problem.decode_load),
    )


def _workers(
    program: Program, problem: SplitProblem, price: NDArray[np.float64] | float
) -> tuple[Ints, Ints]:
    """Add the workers, the GPUs they take, the nodes they fit into and the KV cache they hold."""
    most = problem.gpus[problem.group] // problem.size
    prefill, decode = (
        program.variables(
            len(problem.size), cost=price, upper=np.where(speed > 0, most, 0), integer=True
        )
        for speed in (problem.prefill_speed, problem.decode_speed)
    )
    for g, gpus in enumerate(problem.gpus):
        kinds = np.flatnonzero(problem.group == g)
        both = np.concatenate((prefill[kinds], decode[kinds]))
        sizes = problem.size[kinds]
        program.row(both, np.tile(sizes, 2), upper=float(gpus))
        per_node = int(problem.per_node[g])
        if nested(sizes, per_node):
            continue
        patterns = node_patterns(sizes, per_node)
        nodes = program.variables(len(patterns), integer=True)
        program.row(nodes, upper=float(gpus // per_node))
        for k, kind in enumerate(kinds):
            program.row(
                np.concatenate(([prefill[kind], decode[kind]], nodes)),
                np.concatenate(([-1.0, -1.0], patterns[:, k])),
                lower=0.0,
            )
    if problem.held_tokens > 0:
        program.row(decode, problem.kv_tokens, lower=problem.held_tokens)
    return prefill, decode
