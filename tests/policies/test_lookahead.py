"""The look-ahead of MC-SF against a check of every iteration."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpusched.policies.batching.lookahead import discard, first_fit, insert, shortfall


@st.composite
def states(draw):
    """Residents in ascending order of end, a candidate, a budget."""
    start = draw(st.integers(0, 30))
    residents = draw(
        st.lists(st.tuples(st.integers(start - 4, start + 25), st.integers(1, 20)), max_size=8)
    )
    residents = [(end, held - start) for end, held in sorted(residents)]
    tokens, duration = draw(st.integers(1, 20)), draw(st.integers(1, 25))
    return residents, start, tokens, duration, draw(st.integers(5, 150)), draw(st.integers(0, 3))


def rows(residents):
    ends = np.zeros((1, len(residents) + 1), np.int64)
    bases = np.zeros((1, len(residents) + 1), np.int64)
    for i, (end, base) in enumerate(residents):
        ends[0, i], bases[0, i] = end, base
    return ends, bases


def fits(residents, start, tokens, duration, limit, slack):
    """Whether KV use stays within the limit in every iteration of the candidate."""
    for t in range(start, start + duration):
        used = tokens + (t - start) + slack
        used += sum(base + t + slack for end, base in residents if max(end, start) >= t)
        if used > limit:
            return False
    return True


@given(states())
def test_checking_ends_equals_checking_every_iteration(state):
    residents, start, tokens, duration, limit, slack = state
    ends, bases = rows(residents)
    last = start + duration - 1
    delay = shortfall(ends, bases, 0, len(residents), start, tokens, last, limit, slack)
    assert delay >= 0
    assert (delay == 0) == fits(*state)


@given(states())
def test_the_delay_never_skips_a_start_that_fits(state):
    residents, start, tokens, duration, limit, slack = state
    ends, bases = rows(residents)
    horizon = 40
    found = first_fit(
        ends, bases, 0, len(residents), start, tokens, duration, limit, slack, horizon
    )
    fitting = [
        d
        for d in range(1, horizon + 1)
        if fits(residents, start + d, tokens, duration, limit, slack)
    ]
    assert found == (fitting[0] if fitting else horizon + 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-9, 9)), max_size=12), st.randoms())
def test_residents_stay_in_order(residents, random):
    ends, bases = rows([])
    ends, bases = np.zeros((1, 13), np.int64), np.zeros((1, 13), np.int64)
    for size, (end, base) in enumerate(residents):
        insert(ends, bases, 0, size, end, base)
    left = list(residents)
    random.shuffle(left)
    for size in range(len(left), 0, -1):
        held = list(zip(ends[0, :size].tolist(), bases[0, :size].tolist(), strict=True))
        assert sorted(held) == sorted(left)
        assert [end for end, _ in held] == sorted(end for end, _ in left)
        discard(ends, bases, 0, size, *left.pop())
