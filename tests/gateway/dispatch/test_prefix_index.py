"""The index of prefixes: bounded, exact while nothing is forgotten, quick to forget an engine."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.gateway.dispatch.prefix_index import ENTRY_BYTES, PrefixIndex
from gpusched.gateway.exchange import NOWHERE


def test_the_longest_known_part_names_the_engine():
    index = PrefixIndex(1e6)
    index.remember((1, 2, 3), 0)
    index.remember((1, 2, 9), 1)
    assert index.favourite((1, 2, 3, 4)) == 0
    assert index.favourite((1, 2)) == 1
    assert index.favourite((7, 2)) == NOWHERE
    assert index.favourite(()) == NOWHERE


def test_an_engine_that_leaves_is_forgotten_at_once_and_may_come_back():
    index = PrefixIndex(1e6)
    index.remember((1, 2), 0)
    index.remember((1, 2, 3), 1)
    index.forget(1)
    assert index.favourite((1, 2, 3)) == NOWHERE
    index.remember((1,), 1)
    assert index.favourite((1, 2, 3)) == 1
    index.forget(5)


def test_what_was_used_last_stays():
    index = PrefixIndex(3 * ENTRY_BYTES)
    index.remember((1,), 0)
    index.remember((2,), 0)
    index.remember((3,), 0)
    index.remember((1,), 1)
    index.remember((4,), 0)
    assert [index.favourite((block,)) for block in (1, 2, 3, 4)] == [1, NOWHERE, 0, 0]


def test_of_a_long_prompt_its_beginning_stays():
    index = PrefixIndex(4 * ENTRY_BYTES)
    index.remember(tuple(range(10, 20)), 2)
    assert len(index) == 4
    assert index.favourite(tuple(range(10, 20))) == 2
    assert index.favourite((14,)) == NOWHERE


@pytest.mark.parametrize("limit_bytes", [30_000, 300_000, 5_000_000])
def test_memory_stays_below_its_bound(limit_bytes):
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = PrefixIndex(limit_bytes)
    worst = 0
    for i in range(3 * index.most_blocks):
        index.remember((hash((i, "block")),), i % 7)
        if i % 97 == 0:
            worst = max(worst, tracemalloc.get_traced_memory()[0] - before)
    tracemalloc.stop()
    assert len(index) == index.most_blocks
    assert worst <= limit_bytes + 4096


steps = st.lists(
    st.tuples(
        st.sampled_from(["remember", "forget", "ask"]),
        st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple),
        st.integers(0, 3),
    ),
    max_size=60,
)


@given(steps)
def test_without_pressure_it_is_a_plain_table(steps):
    index = PrefixIndex(1e6)
    owner: dict[int, int] = {}
    for action, prefix, engine in steps:
        if action == "remember":
            index.remember(prefix, engine)
            owner |= dict.fromkeys(prefix, engine)
        elif action == "forget":
            index.forget(engine)
            owner = {block: held for block, held in owner.items() if held != engine}
        else:
            expected = NOWHERE
            for block in prefix:
                if block not in owner:
                    break
                expected = owner[block]
            assert index.favourite(prefix) == expected


@given(st.lists(st.lists(st.integers(0, 50), max_size=9), max_size=80), st.integers(1, 20))
def test_the_number_of_blocks_is_bounded(prompts, most):
    index = PrefixIndex(most * ENTRY_BYTES)
    for engine, prompt in enumerate(prompts):
        index.remember(tuple(prompt), engine % 3)
        assert len(index) <= most
