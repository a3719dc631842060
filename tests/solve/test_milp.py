from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.solve.milp import Incumbent, Program


@given(
    values=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    weights=st.lists(st.integers(1, 30), min_size=6, max_size=6),
    room=st.integers(0, 60),
)
@settings(max_examples=30, deadline=None)
def test_knapsack_is_that_of_enumeration(values: list[int], weights: list[int], room: int) -> None:
    weight = np.array(weights[: len(values)])
    program = Program(maximize=True)
    taken = program.variables(len(values), cost=values, upper=1, integer=True)
    program.row(taken, weight, upper=room)
    solution = program.solve()
    best = max(
        np.dot(values, choice)
        for choice in product((0, 1), repeat=len(values))
        if weight @ choice <= room
    )
    assert solution.status == "optimal"
    assert solution.objective == pytest.approx(best)
    assert solution.bound == pytest.approx(best)
    assert weight @ solution.values <= room + 1e-6


def test_statuses() -> None:
    infeasible = Program()
    both = infeasible.variables(2)
    infeasible.row(both, lower=3)
    infeasible.row(both, upper=2)
    assert infeasible.solve().status == "infeasible"
    unbounded = Program(maximize=True)
    unbounded.variables(1, cost=1)
    assert unbounded.solve().status == "unbounded"


def test_stops_where_told_and_reports_the_gap() -> None:
    rng = np.random.default_rng(0)
    program = Program(maximize=True)
    taken = program.variables(60, cost=rng.integers(10, 60, 60), upper=1, integer=True)
    for _ in range(8):
        weight = rng.integers(10, 60, 60)
        program.row(taken, weight, upper=weight.sum() / 2)
    seen: list[Incumbent] = []

    def enough(incumbent: Incumbent) -> bool:
        seen.append(incumbent)
        return np.isfinite(incumbent.objective)

    solution = program.solve(stop=enough)
    assert seen
    assert solution.status in ("feasible", "optimal")
    assert solution.bound >= solution.objective - 1e-6
    assert program.solve(relax=True).objective >= solution.bound - 1e-6


def test_row_numbers_and_empty_rows() -> None:
    program = Program()
    x = program.variables((2, 3), cost=1.0, upper=5)
    first = program.rows([[0], [1]], x, 1.0, lower=[2, 3, 0], count=3)
    assert list(first) == [0, 1, 2]
    assert program.row(x[0, 0], lower=1) == 3
    assert program.size == (4, 6)
    assert program.solve().objective == pytest.approx(5)
