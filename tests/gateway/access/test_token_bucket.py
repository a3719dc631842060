import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.gateway.access.token_bucket import TokenBucket

STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 200)), min_size=1, max_size=200)


@given(limit=st.floats(0.5, 600), steps=STEPS)
def test_no_window_hands_out_more_than_burst_and_rate(limit, steps):
    bucket = TokenBucket.a_minute(limit)
    now, taken = 0.0, []
    for gap, tokens in steps:
        now += gap
        if bucket.take(tokens, now):
            taken.append((now, tokens))
    for i, (begin, _) in enumerate(taken):
        total = 0
        for end, tokens in taken[i:]:
            total += tokens
            most = bucket.capacity + bucket.rate_per_s * (end - begin)
            assert total <= most * (1 + 1e-9) + 1e-9


@given(limit=st.floats(1, 600), steps=STEPS)
def test_the_wait_it_names_is_enough_and_no_less_would_be(limit, steps):
    bucket, now = TokenBucket.a_minute(limit), 0.0
    for gap, tokens in steps:
        now += gap
        if bucket.take(tokens, now):
            continue
        wait = bucket.wait_s(tokens)
        if tokens > bucket.capacity:
            assert wait == float("inf")
            continue
        assert wait > 0
        short = TokenBucket(bucket.capacity, bucket.rate_per_s, now)
        short.level = bucket.level
        assert not short.take(tokens, now + wait * 0.999 - 1e-6)
        assert short.take(tokens, now + wait * 1.001 + 1e-6)


def test_a_correction_may_overdraw_and_is_worked_off():
    bucket = TokenBucket(60, 1.0)
    assert bucket.take(50, 0.0)
    bucket.give_back(-30)
    assert bucket.level == -20
    assert not bucket.take(1, 20.0)
    assert bucket.take(1, 21.0)
    bucket.give_back(1000)
    assert bucket.level == 60


def test_time_that_goes_back_gives_nothing():
    bucket = TokenBucket(10, 1.0, 100.0)
    assert bucket.take(10, 100.0)
    assert bucket.refill(50.0) == 0
    assert bucket.refill(101.0) == pytest.approx(1.0)
