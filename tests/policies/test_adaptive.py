"""Where a round's prefill runs: the rule on plain numbers."""

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.routing.adaptive import (
    ADAPTIVE,
    AWAY,
    HOME,
    LEAST_BAD_LOCAL,
    LEAST_BAD_REMOTE,
    LOCAL,
    REMOTE,
    added_itl_s,
    choose_branch,
    is_local,
    remote_s,
    ships_s,
    soonest,
)
from gpusched.policies.routing.policy import routing_policy
from gpusched.policies.routing.windowed import SLOTS, observe, slot_of, window_sums


def branch(local, remote, *, itl=0.0, extra=0.0, ttft=0.0, rule=ADAPTIVE, history=True):
    return choose_branch(rule, history, local, remote, itl, extra, ttft, 2.0, 0.05, 0.9, 0.8)


def test_break_even_of_the_worked_instance():
    """8000 tokens of history at 327 680 B and 50 GB/s, 40 ms of queue before it is shipped, 10 000
    and 6 000 tokens/s: local for increments below 1 538 tokens."""
    token_s = 327_680 / 50e9

    def local_and_remote(new):
        wait_s = 0.040 + ships_s(8000, 0.0, token_s)
        return new / 6000, remote_s(wait_s, 0.0, new / 10_000, ships_s(new, 0.0, token_s))

    assert local_and_remote(300) == pytest.approx((0.050, 0.1244), rel=1e-3)
    choices = {new: branch(*local_and_remote(new)) for new in (1, 300, 1537, 1538, 4000)}
    assert choices == {1: LOCAL, 300: LOCAL, 1537: LOCAL, 1538: REMOTE, 4000: REMOTE}
    assert remote_s(0.040, ships_s(8000, 0.0, token_s), 0.0, 0.0) == pytest.approx(0.0524288)


def test_branches():
    assert branch(1.0, 2.0) == LOCAL
    assert branch(2.0, 1.0) == REMOTE
    assert branch(2.0, 1.0, ttft=1.9) == LOCAL  # prefill workers near their bound
    assert branch(1.0, 1.5, itl=0.045) == REMOTE  # the decode worker near its own
    assert branch(1.0, 1.5, itl=0.03, extra=0.03) == REMOTE
    assert branch(1.0, 1.5, itl=0.045, ttft=1.9) == REMOTE  # still within the bound
    assert branch(1.0, 2.5, itl=0.045, ttft=1.9) == LEAST_BAD_LOCAL
    assert branch(3.0, 2.5, itl=0.045, ttft=1.9) == LEAST_BAD_REMOTE
    assert branch(9.0, 1.0, rule=HOME) == LOCAL
    assert branch(1.0, 9.0, rule=HOME, history=False) == REMOTE
    assert branch(1.0, 9.0, rule=AWAY) == REMOTE
    assert branch(1.0, inf, rule=AWAY) == LOCAL


TIMES = st.floats(0.0, 10.0)


@given(TIMES, TIMES, TIMES, TIMES, TIMES)
def test_the_decode_worker_is_spared_and_shipping_for_ever_is_not_chosen(
    local, remote, itl, extra, ttft
):
    chosen = choose_branch(
        ADAPTIVE, True, local, remote, itl + 1e-9, extra, 0.0, 2.0, 0.0, 0.9, 0.8
    )
    assert chosen == REMOTE
    chosen = choose_branch(ADAPTIVE, True, local, inf, itl, extra, ttft, 2.0, 0.05, 0.9, 0.8)
    assert is_local(chosen)


def test_soonest_takes_the_first_of_equals_and_none_where_none_can():
    assert soonest(np.array([inf, 2.0, 1.0, 1.0]), 0, 4) == 2
    assert soonest(np.array([1.0, inf, inf]), 1, 3) == -1


def test_a_local_prefill_is_spread_over_the_tokens_of_the_window():
    assert added_itl_s(0.2, 4, 100) == pytest.approx(0.008)
    assert added_itl_s(0.2, 4, 0) == 0.2
    assert added_itl_s(0.2, 0, 0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 100)), max_size=60), st.floats(0, 5))
def test_window_sums_what_its_slots_cover(values, later):
    totals, counts = np.zeros((2, SLOTS)), np.zeros((2, SLOTS), np.int64)
    slots = np.full((2, SLOTS), -1)
    window_s = 10.0
    values.sort()
    for time_s, value in values:
        observe(totals, counts, slots, 1, slot_of(time_s, window_s), float(value), 1)
    now_s = (values[-1][0] if values else 0.0) + later
    covered = [v for t, v in values if slot_of(t, window_s) > slot_of(now_s, window_s) - SLOTS]
    assert window_sums(totals, counts, slots, 1, slot_of(now_s, window_s)) == (
        sum(covered), len(covered),
    )  # fmt: skip
    assert window_sums(totals, counts, slots, 0, slot_of(now_s, window_s)) == (0.0, 0)
    assert all(v in covered for t, v in values if t > now_s - 0.9 * window_s + 1e-6)


def test_parameters_and_ranges():
    policy = routing_policy("ampd+alpha=0.5+window_s=3")
    assert (policy.alpha, policy.beta, policy.window_s) == (0.5, 0.8, 3.0)
    with pytest.raises(InputError, match="routing policy ampd: window_s must be a number"):
        routing_policy("ampd+window_s=0")
    with pytest.raises(InputError, match="local-prefill has no parameter 'alpha'"):
        routing_policy("local-prefill+alpha=1")
