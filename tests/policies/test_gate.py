"""Gates and decode routers on cases computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.policies.admission.gate import (
    CAPPED,
    CREDIT,
    FIRST_COME,
    OCCUPANCY,
    PRIORITY,
    accrue,
    capped_class,
    choose_class,
    credit_class,
    credit_wait_s,
    first_come_class,
    gate_class,
    priority_class,
)
from gpusched.policies.routing.decode_router import (
    DECODE_FIRST,
    MIXED,
    PREFILL_FIRST,
    SOLO,
    SPLIT,
    STAY,
    choose_free,
    choose_pool,
    route_decode,
    split_pool,
    weighted_class,
)

Z = np.zeros(3)


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float64)


@pytest.mark.parametrize(
    ("waiting", "in_prefill", "targets", "queue_targets", "expected"),
    [
        # (2 - 4)/4 = -0.5, (3 - 4)/4 = -0.25
        (ints(1, 1), ints(2, 3), floats(4, 4), Z[:2], 0),
        (ints(0, 1), ints(2, 3), floats(4, 4), Z[:2], 1),
        (ints(0, 0), ints(0, 0), floats(4, 4), Z[:2], -1),
        # relative, not absolute: 1 of 2 is as far behind as 5 of 10, so the queue decides
        (ints(3, 5), ints(1, 5), floats(2, 10), floats(0, 0), 1),
        (ints(3, 5), ints(1, 5), floats(2, 10), floats(0, 4), 0),
        (ints(5, 5), ints(1, 5), floats(2, 10), floats(0, 0), 0),
        # a class without planned prefills starts only alone
        (ints(9, 1), ints(0, 50), floats(0, 4), Z[:2], 1),
        (ints(9, 0), ints(0, 50), floats(0, 4), Z[:2], 0),
        # beyond its target, if no other waits
        (ints(1, 0), ints(7, 0), floats(4, 4), Z[:2], 0),
        (ints(1, 1, 1), ints(1, 1, 0), floats(1, 2, 0.1), Z, 2),
    ],
)
def test_gate(waiting, in_prefill, targets, queue_targets, expected):
    assert gate_class(waiting, in_prefill, targets, queue_targets, len(waiting)) == expected


def test_classes_beyond_the_count_are_not_looked_at():
    assert gate_class(ints(0, 0, 5), ints(0, 0, 0), floats(1, 1, 1), Z, 2) == -1


def test_cap_holds_metered_classes_back():
    targets, both = floats(2.5, 4), np.array([True, False])
    assert capped_class(ints(1, 0), ints(2, 9), targets, Z[:2], both, 2) == 0
    assert capped_class(ints(1, 0), ints(3, 9), targets, Z[:2], both, 2) == -1
    assert capped_class(ints(0, 1), ints(3, 9), targets, Z[:2], both, 2) == 1
    assert capped_class(ints(1, 0), ints(0, 0), floats(0, 4), Z[:2], both, 2) == -1
    # below one request there is still room for one
    assert capped_class(ints(1, 0), ints(0, 0), floats(0.2, 4), Z[:2], both, 2) == 0


def test_credits():
    metered, rates = np.array([True, False]), floats(0.5, 1)
    credits = floats(0.0, 0.0)
    assert credit_class(ints(1, 0), ints(0, 0), floats(1, 1), Z[:2], metered, credits, 2) == -1
    assert credit_wait_s(ints(1, 0), metered, credits, rates, 2) == pytest.approx(2.0)
    accrue(credits, rates, 2.0, 1.5, 2)
    assert credits == pytest.approx([0.75, 1.5])
    assert credit_wait_s(ints(1, 0), metered, credits, rates, 2) == pytest.approx(0.5)
    assert credit_wait_s(ints(0, 1), metered, credits, rates, 2) == math.inf
    assert credit_wait_s(ints(1, 0), metered, credits, floats(0, 1), 2) == math.inf
    accrue(credits, rates, 2.0, 0.5, 2)
    assert credit_class(ints(1, 0), ints(0, 0), floats(1, 1), Z[:2], metered, credits, 2) == 0
    accrue(credits, rates, 2.0, 100.0, 2)
    assert credits == pytest.approx([2.0, 2.0])
    # the gate's order holds among those that may start
    assert credit_class(ints(1, 1), ints(1, 0), floats(1, 1), Z[:2], metered, credits, 2) == 1


def test_first_come_and_priority():
    assert first_come_class(ints(1, 1, 0), floats(5, 3, 1), 3) == 1
    assert first_come_class(ints(0, 0, 0), floats(5, 3, 1), 3) == -1
    assert priority_class(ints(1, 1, 0), floats(0.1, 3.3, 9), 3) == 1
    assert priority_class(ints(1, 1, 0), floats(2, 2, 9), 3) == 0
    assert priority_class(ints(0, 0, 0), floats(2, 2, 9), 3) == -1


counts = st.lists(st.integers(0, 4), min_size=3, max_size=3).map(lambda v: ints(*v))
amounts = st.lists(st.floats(0, 4), min_size=3, max_size=3).map(lambda v: floats(*v))


@given(counts, counts, amounts, amounts, amounts, st.lists(st.booleans(), min_size=3, max_size=3))
def test_every_gate_is_the_one_it_names(waiting, busy, targets, queues, credits, metered):
    metered = np.array(metered)
    common = (waiting, queues, busy, targets, queues, metered, credits, credits, 3)
    assert choose_class(OCCUPANCY, *common) == gate_class(waiting, busy, targets, queues, 3)
    assert choose_class(CAPPED, *common) == capped_class(waiting, busy, targets, queues, metered, 3)
    assert choose_class(CREDIT, *common) == credit_class(
        waiting, busy, targets, queues, metered, credits, 3
    )
    assert choose_class(FIRST_COME, *common) == first_come_class(waiting, queues, 3)
    assert choose_class(PRIORITY, *common) == priority_class(waiting, credits, 3)
    for gate in (OCCUPANCY, FIRST_COME, PRIORITY):
        chosen = choose_class(gate, *common)
        assert (chosen == -1) == (not waiting.any())
        assert chosen == -1 or waiting[chosen] > 0


@pytest.mark.parametrize(
    ("router", "solo_free", "mixed_free", "expected"),
    [
        (DECODE_FIRST, 1, 1, SOLO),
        (DECODE_FIRST, 0, 1, MIXED),
        (DECODE_FIRST, 0, 0, -1),
        (PREFILL_FIRST, 1, 1, MIXED),
        (PREFILL_FIRST, 1, 0, SOLO),
        (PREFILL_FIRST, 0, 0, -1),
    ],
)
def test_pools(router, solo_free, mixed_free, expected):
    assert choose_pool(router, solo_free, mixed_free) == expected


def test_routes():
    solo, mixed = ints(4, 7, 9), ints(1, 2)

    def route(router, solo_free, mixed_free, *, to_solo=0.0, draw=0.0, uniform=0.0):
        return route_decode(router, 3, to_solo, solo, solo_free, mixed, mixed_free, draw, uniform)

    assert [route(DECODE_FIRST, 3, 2, uniform=u) for u in (0.0, 0.34, 0.99)] == [4, 7, 9]
    assert [route(DECODE_FIRST, 0, 2, uniform=u) for u in (0.0, 0.5)] == [1, 2]
    assert route(DECODE_FIRST, 0, 0) == -1
    assert route(PREFILL_FIRST, 3, 1) == 1
    assert route(STAY, 3, 2) == 3
    assert route(SPLIT, 3, 2, to_solo=0.25, draw=0.2) == 4
    assert route(SPLIT, 3, 2, to_solo=0.25, draw=0.3) == 1
    assert route(SPLIT, 0, 2, to_solo=0.25, draw=0.2) == -1
    assert split_pool(1.0, 0.999) == SOLO
    assert split_pool(0.0, 0.0) == MIXED
    assert choose_free(solo, 0, 0.5) == -1


def test_weighted_class():
    weights = floats(1, 2, 1)
    assert [weighted_class(ints(1, 1, 1), weights, 3, u) for u in (0.2, 0.3, 0.7, 0.8)] == [
        0, 1, 1, 2,
    ]  # fmt: skip
    assert [weighted_class(ints(1, 0, 1), weights, 3, u) for u in (0.4, 0.6)] == [0, 2]
    assert weighted_class(ints(0, 1, 1), Z, 3, 0.9) == 1
    assert weighted_class(ints(0, 0, 0), weights, 3, 0.9) == -1
