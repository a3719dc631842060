from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.cascade.allocation import by_program, slowest_model, whole_way
from gpusched.planning.cascade.escalation import candidate_thresholds, escalate, undominated
from gpusched.planning.cascade.front import cascade_front

INF = np.inf
TABLES = [
    [INF, 4, 2.2, 1.6, 1.3, 1.1, 1, 0.95, 0.9, 0.9, 0.9],
    [INF, INF, 9, 6.5, 5, 4.2, 3.6, 3.2, 2.9, 2.9, 2.9],
    [INF, INF, INF, INF, 8, 6.8, 5.9, 5.2, 4.7, 4.7, 4.7],
]
SCORES = [
    (95, 96, 97), (60, 92, 95), (85, 88, 96), (40, 70, 93), (75, 80, 90), (90, 85, 94),
]  # fmt: skip


@pytest.mark.parametrize(
    ("gpus", "value", "chosen"), [(8, 8.0, (1, 3, 4)), (9, 6.8, (1, 3, 5)), (10, 6.5, (1, 3, 6))]
)
def test_worked_allocations(gpus: int, value: float, chosen: tuple[int, ...]) -> None:
    for found in (slowest_model(TABLES, gpus), by_program(TABLES, gpus)):
        assert found.value_s == value
        assert sum(found.gpus) <= gpus
    assert slowest_model(TABLES, gpus).gpus == chosen


def test_too_few_gpus_says_how_many_are_needed() -> None:
    with pytest.raises(InfeasibleError, match=r"1 \+ 2 \+ 4 = 7 GPUs"):
        slowest_model(TABLES, 6)


@pytest.mark.parametrize(
    ("h", "reach", "quality"),
    [
        ((0, 0), (1, 0, 0), 74.1667),
        ((101, 101), (1, 1, 1), 94.1667),
        ((80, 80), (1, 1 / 2, 1 / 6), 89.1667),
        ((80, 85), (1, 1 / 2, 1 / 3), 90.8333),
        ((86, 86), (1, 2 / 3, 1 / 3), 91.3333),
        ((90, 90), (1, 2 / 3, 1 / 2), 92.6667),
        ((70, 75), (1, 1 / 3, 1 / 6), 88.3333),
    ],
)
def test_worked_escalation(h: tuple[float, ...], reach: tuple[float, ...], quality: float) -> None:
    found = escalate(SCORES, h)
    assert found.reach[0] == pytest.approx(reach)
    assert found.quality[0] == pytest.approx(quality, abs=1e-4)


tables = st.lists(st.lists(st.integers(1, 30), min_size=2, max_size=7), min_size=1, max_size=3).map(
    lambda rows: [[INF, *sorted(map(float, row), reverse=True)] for row in rows]
)


@given(latency=tables, gpus=st.integers(1, 9), data=st.data())
@settings(max_examples=150, deadline=None)
def test_allocations_are_those_of_enumeration(
    latency: list[list[float]], gpus: int, data: st.DataObject
) -> None:
    reach = [data.draw(st.integers(1, 4)) / 4 for _ in latency]
    slow, way = INF, INF
    for chosen in product(*(range(len(table)) for table in latency)):
        if sum(chosen) <= gpus:
            taken = [table[f] for table, f in zip(latency, chosen, strict=True)]
            slow = min(slow, max(taken))
            way = min(way, float(np.dot(reach, taken)))
    if np.isinf(slow):
        for solve in (slowest_model, by_program):
            with pytest.raises(InfeasibleError):
                solve(latency, gpus)
        return
    fast = slowest_model(latency, gpus)
    assert fast.value_s == slow
    assert sum(fast.gpus) <= gpus
    assert by_program(latency, gpus).value_s == pytest.approx(slow)
    mean = whole_way(latency, reach, gpus)
    assert mean.value_s == pytest.approx(way)
    assert sum(mean.gpus) <= gpus


scores = st.integers(2, 3).flatmap(
    lambda models: st.lists(
        st.lists(st.integers(0, 10), min_size=models, max_size=models), min_size=1, max_size=6
    )
)


@given(table=scores)
@settings(max_examples=60, deadline=None)
def test_reach_falls_along_the_cascade_and_grows_with_thresholds(table: list[list[int]]) -> None:
    found = escalate(table, candidate_thresholds(table))
    assert (np.diff(found.reach, axis=1) <= 1e-12).all()
    higher = escalate(table, found.thresholds + 1.0)
    assert (higher.reach >= found.reach - 1e-12).all()


@given(table=scores)
@settings(max_examples=60, deadline=None)
def test_dropping_dominated_thresholds_loses_no_point_of_the_front(table: list[list[int]]) -> None:
    found = escalate(table, candidate_thresholds(table))
    kept = undominated(found)
    for row in range(len(found.quality)):
        better = (found.reach[kept] <= found.reach[row] + 1e-12).all(axis=1)
        assert (better & (found.quality[kept] >= found.quality[row] - 1e-12)).any()


def test_front_and_the_points_asked_for() -> None:
    def inner(reach: np.ndarray):  # type: ignore[no-untyped-def]
        scaled = [
            share * np.array(table) if share else np.zeros(len(table))
            for table, share in zip(TABLES, reach, strict=True)
        ]
        return slowest_model(scaled, 10)

    front = cascade_front(SCORES, inner)
    values = [point.allocation.value_s for point in front.points]
    qualities = [point.quality for point in front.points]
    assert values == sorted(values)
    assert qualities == sorted(qualities)
    assert qualities[-1] == pytest.approx(94.1667, abs=1e-3)
    asked = front.fastest(90.0)
    assert asked.quality >= 90
    assert asked.allocation.value_s <= front.fastest(93.0).allocation.value_s
    assert front.penalized(90.0, 1e9) == asked
    assert front.chebyshev(0.0).quality == qualities[-1]
    assert front.chebyshev(1.0).allocation.value_s == values[0]
    with pytest.raises(InfeasibleError, match=r"reach 94\.17"):
        front.fastest(99.0)


def test_bad_scores_are_named() -> None:
    with pytest.raises(InputError, match="request 1, model 0"):
        escalate([[1.0, 2.0], [np.nan, 1.0]], [1.0])
    with pytest.raises(InputError, match="2 a vector"):
        escalate([[1.0, 2.0]], [[1.0, 2.0]])
