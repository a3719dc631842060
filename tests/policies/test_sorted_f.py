"""Batches of least F against all subsets, and the order that follows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.planning.hindsight import check_schedule
from gpusched.policies.batching.rounds import run_rounds
from gpusched.policies.batching.sorted_f import (
    batch_fits,
    best_batch,
    f_metric,
    grown_batch,
    sorted_f_order,
)


@st.composite
def backlogs(draw, largest=8):
    budget = draw(st.integers(6, 40))
    rows = []
    for _ in range(draw(st.integers(1, largest))):
        s = draw(st.integers(1, budget - 1))
        rows.append((s, draw(st.integers(1, budget - s))))
    return budget, *np.array(rows, np.int64).T


@given(backlogs())
def test_a_batch_fits_if_every_round_does(backlog):
    budget, s, o = backlog
    held = [int((s + t)[o >= t].sum()) for t in range(1, int(o.max()) + 1)]
    assert batch_fits(s, o, budget) == (max(held) <= budget)


@given(backlogs())
def test_grown_batches_fit_and_no_subset_beats_the_best(backlog):
    budget, s, o = backlog
    best, grown = best_batch(s, o, budget), grown_batch(s, o, budget)
    assert len(set(grown.tolist())) == len(grown)
    assert batch_fits(s[grown], o[grown], budget)
    least = min(
        f_metric(o[rows])
        for bits in range(1, 1 << len(o))
        if batch_fits(s[rows := np.flatnonzero(bits >> np.arange(len(o)) & 1)], o[rows], budget)
    )
    assert f_metric(o[best]) == pytest.approx(least)
    assert f_metric(o[grown]) >= least - 1e-12


@given(backlogs(largest=20))
def test_the_order_is_a_feasible_schedule(backlog):
    budget, s, o = backlog
    places = sorted_f_order(s, o, budget)
    assert sorted(places.tolist()) == list(range(len(o)))
    run = run_rounds(np.zeros(len(o)), s, o, budget, priority=places)
    assert check_schedule(np.zeros(len(o)), s, o, budget, run.starts) == []


@pytest.mark.parametrize("exact", [False, True])
def test_large_prompts_of_short_outputs_wait_for_many_small_ones(exact):
    """Shortest output first runs the large prompts one by one before all the small requests."""
    s = np.array([38] * 4 + [1] * 8)
    o = np.array([2] * 4 + [3] * 8)
    a = np.zeros(len(o))
    shortest = run_rounds(a, s, o, 40).total_latency
    batched = run_rounds(a, s, o, 40, priority=sorted_f_order(s, o, 40, exact=exact)).total_latency
    assert batched < 0.7 * shortest


def test_exact_batches_are_for_few_requests():
    with pytest.raises(InputError, match="at most 16"):
        sorted_f_order(np.ones(17), np.ones(17), 40, exact=True)
