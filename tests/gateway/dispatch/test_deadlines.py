"""Many deadlines behind one timer."""

from dispatch_doubles import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from gpusched.gateway.dispatch.deadlines import Deadlines


@given(
    st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.floats(0, 3)), max_size=40),
    st.floats(0.1, 2),
)
def test_each_item_is_due_once_at_its_time_unless_it_has_lapsed(items, delay_s):
    clock = FakeClock()
    lapsed: set[int] = set()
    due: list[tuple[int, float]] = []
    deadlines = Deadlines(
        clock.call_at, delay_s, lapsed.__contains__, lambda item, now_s: due.append((item, now_s))
    )
    expected = []
    for number, (gap_s, ends, after_s) in enumerate(items):
        clock.move(clock.now_s + gap_s)
        start_s = clock.now_s
        deadlines.add(number, start_s)
        if ends:
            clock.call_at(start_s + after_s, lapsed.add, number)
        if not ends or after_s >= delay_s:
            expected.append((number, start_s + delay_s))
    clock.move(clock.now_s + 10.0)
    sure = {i for i, (_, ends, after_s) in enumerate(items) if not ends or after_s != delay_s}
    assert [d for d in due if d[0] in sure] == [e for e in expected if e[0] in sure]
    assert not len(deadlines)
