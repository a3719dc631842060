from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.capacity.instances import (
    by_program,
    cost,
    demand_of,
    instances,
    unmet,
)


def test_worked_instances() -> None:
    found = instances(demand_of(np.ones((2, 2, 1)), [[100], [100]], [[101, 10], [10, 201]], 10, 1))
    assert found.change[:, :, 0].tolist() == [[1, 0], [0, 2]]
    assert found.usd == 33

    def one(demand: list[float], share: float) -> float:
        question = demand_of(np.full((1, 3, 1), 5), [[100]], [demand], 10, 150, local_share=share)
        assert instances(question).usd == pytest.approx(by_program(question).usd)
        assert not unmet(question, instances(question).change)
        return instances(question).usd

    assert one([1000, 200, 100], 0.6) == 130
    assert one([1000, 200, 100], 1.0) == 730
    assert one([150, 150, 0], 0.6) == -120


def test_two_gpu_types() -> None:
    question = demand_of(
        [[[2, 1]], [[1, 0]]], [[100, 260], [80, 200]], [[700], [300]], [10, 24], 15
    )
    found = instances(question)
    assert found.usd == 103
    assert found.change[:, 0].tolist() == [[0, 1], [1, 1]]


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_closed_form_is_the_program(data: st.DataObject) -> None:
    regions = data.draw(st.integers(1, 4))
    small = st.lists(st.integers(0, 6), min_size=regions, max_size=regions)
    question = demand_of(
        np.array(data.draw(small)).reshape(1, regions, 1),
        [[data.draw(st.integers(20, 120))]],
        [[value * 37 for value in data.draw(small)]],
        10,
        data.draw(st.sampled_from([0, 5, 150])),
        local_share=data.draw(st.sampled_from([0.0, 0.3, 0.6, 1.0])),
        least=data.draw(st.integers(0, 2)),
    )
    fast, exact = instances(question), by_program(question)
    assert fast.method == "closed form"
    assert not unmet(question, fast.change)
    assert fast.usd == pytest.approx(exact.usd)
    assert exact.bound_usd <= exact.usd + 1e-6


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_limits_couple_models_as_enumeration_says(data: st.DataObject) -> None:
    numbers = st.integers(0, 2)
    now = np.array([data.draw(numbers) for _ in range(4)]).reshape(2, 2, 1)
    demand = np.array([data.draw(st.integers(0, 25)) for _ in range(4)], float).reshape(2, 2)
    most = np.array([data.draw(st.integers(0, 4)) for _ in range(2)]).reshape(2, 1)
    question = demand_of(now, [[10], [8]], demand, 3, 2, local_share=0.5, most=most)
    best = np.inf
    for held in product(range(5), repeat=4):
        change = np.array(held).reshape(2, 2, 1) - now
        if not unmet(question, change):
            best = min(best, cost(question, change))
    if np.isinf(best):
        with pytest.raises(InfeasibleError, match=r"region|regions"):
            instances(question)
    else:
        found = instances(question)
        assert not unmet(question, found.change)
        assert found.usd == pytest.approx(best)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="service"):
        demand_of(np.ones((1, 1, 1)), [[0.0]], [[1.0]], 1, 1)
    with pytest.raises(InputError, match="demand"):
        demand_of(np.ones((1, 1, 1)), [[1.0]], [[np.nan]], 1, 1)
    with pytest.raises(InputError, match="local_share"):
        demand_of(np.ones((1, 1, 1)), [[1.0]], [[1.0]], 1, 1, local_share=2)
