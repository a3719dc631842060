import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from block_instances import drawn, servers, toy
from gpusched.errors import InfeasibleError
from gpusched.planning.blocks.chain import cheapest_chain, decode_visits
from gpusched.planning.blocks.check import problems
from gpusched.planning.blocks.conservative import (
    blocks_held,
    in_flight,
    lone_request_s,
    most_concurrency,
    place_conservatively,
    place_for_most,
)
from gpusched.planning.blocks.petals import petals_blocks, place_as_petals, should_move
from gpusched.planning.blocks.testbeds import (
    BLOCK_BYTES,
    CACHE_TOKEN_BYTES,
    HIDDEN,
    OUTPUT,
    PROMPT,
    clustered,
)
from gpusched.sim.chains.simulate import ChainLoad, simulate_chains

TOKENS = PROMPT + OUTPUT


def test_sizes_of_bloom():
    assert pytest.approx(1.3233976672, rel=1e-10) == BLOCK_BYTES / 1e9
    assert pytest.approx(0.008486912, rel=1e-9) == CACHE_TOKEN_BYTES * TOKENS / 1e9


@pytest.mark.parametrize(
    ("concurrency", "a100", "a_slice"),
    [(1, 59, 6), (5, 57, 6), (10, 56, 5), (20, 52, 5), (50, 45, 4), (100, 36, 3)],
)
def test_blocks_on_the_papers_gpus(concurrency, a100, a_slice):
    held = blocks_held(clustered()[0], concurrency, TOKENS)
    assert held.tolist() == [a100] * 2 + [a_slice] * 7


def test_petals_blocks_and_throughput():
    bed, rates = clustered()
    blocks = petals_blocks(bed, HIDDEN)
    assert blocks.tolist() == [49] * 2 + [3] * 7
    throughput = rates.throughput_rps(blocks)
    assert throughput[0] == pytest.approx(833.18, rel=1e-4)
    assert throughput[2] == pytest.approx(1378.86, rel=1e-4)


@pytest.mark.parametrize(
    ("beside", "lone_ms", "bound_ms", "in_flight_at"),
    [("slice", 69_569, 525.379, (10, 41, 78)), ("a100", 45_249, 335.379, (7, 27, 52))],
)
def test_single_request_on_the_clustered_testbed(beside, lone_ms, bound_ms, in_flight_at):
    bed, _ = clustered(beside)
    alone_s = lone_request_s(bed, PROMPT, OUTPUT)
    assert alone_s * 1e3 == pytest.approx(lone_ms, abs=1)
    made = place_conservatively(bed, 1, TOKENS)
    assert made.bound_s * 1e3 == pytest.approx(bound_ms, abs=1e-3)
    attained, _ = cheapest_chain(bed, made.placed, decode_visits(bed, 0))
    assert attained == pytest.approx(made.bound_s, rel=1e-12)
    assert tuple(in_flight(rate, alone_s) for rate in (0.1, 0.5, 1.0)) == in_flight_at


def test_toy_by_hand():
    made = place_conservatively(toy(), 2, 1)
    assert made.placed.blocks.tolist() == [4, 2, 2]
    assert made.placed.first.tolist() == [0, 0, 2]
    assert made.order.tolist() == [1, 0, 2]
    assert made.deciding == 2
    assert made.bound_s == 9.0
    best, _ = cheapest_chain(toy(), made.placed, decode_visits(toy(), 0))
    assert best == 8.0


def test_servers_without_room_are_left_out():
    bed = servers([10, 0.5], [1, 1], [1, 1], blocks=4)
    made = place_conservatively(bed, 1, 1)
    assert made.placed.blocks.tolist() == [4, 0]
    assert cheapest_chain(bed, made.placed, decode_visits(bed, 0))[1] == [(0, 4)]
    with pytest.raises(InfeasibleError, match="memory: block"):
        place_conservatively(servers([2, 0.5], [1, 1], [1, 1], blocks=4), 1, 1)


def test_unreachable_servers_are_left_out():
    bed = servers([10, 10], [1, 1], [[np.inf, 1]], blocks=4)
    assert place_conservatively(bed, 1, 1).placed.blocks.tolist() == [0, 4]


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_a_conservative_placement_keeps_its_promises(seed, concurrency):
    bed = drawn(seed, most=5)
    try:
        made = place_conservatively(bed, concurrency, 1)
    except InfeasibleError:
        return
    assert not problems(bed, made.placed)
    used = made.placed.blocks > 0
    # cache for so many whole spans on every server
    assert (made.placed.cache_tokens[used] >= concurrency * made.placed.blocks[used]).all()
    best, _ = cheapest_chain(bed, made.placed, decode_visits(bed, 0))
    assert best <= made.bound_s * (1 + 1e-12)
    load = ChainLoad.of(np.zeros(concurrency), 0, 1)
    served = simulate_chains(bed, made.placed, load)
    assert (served.wait_s == 0).all()


@given(st.integers(0, 10_000))
def test_blocks_fall_with_concurrency(seed):
    bed = drawn(seed)
    held = np.stack([blocks_held(bed, c, 1) for c in range(8)])
    assert (np.diff(held, axis=0) <= 0).all()
    # without caches a server may be full of blocks
    assert (held[0] == np.clip(bed.memory_bytes // bed.block_bytes, 0, bed.blocks)).all()


def test_the_most_that_fits_is_found():
    bed, _ = clustered()
    most = place_for_most(bed, 10_000, TOKENS).concurrency
    place_conservatively(bed, most, TOKENS)
    assert most <= most_concurrency(bed, TOKENS) * 2
    with pytest.raises(InfeasibleError):
        place_conservatively(bed, most + 1, TOKENS)


def test_petals_places_where_throughput_is_least():
    bed, rates = clustered()
    placed = place_as_petals(bed, petals_blocks(bed, HIDDEN), rates, [0, 1, *range(2, 9)])
    assert placed.first[:2].tolist() == [0, 21]
    assert placed.coverage(70).min() >= 1
    assert (placed.cache_tokens == 4096 * placed.blocks).all()


def test_petals_moves_only_if_balance_gains():
    bed = servers([3, 3, 3], [1, 1, 1], [1, 1, 1], blocks=4)
    rates = clustered()[1]
    rates = type(rates)(np.full(3, 10.0), np.full(3, 1e9))
    blocks = np.array([2, 2, 2])
    stacked = place_as_petals(bed, blocks, rates, [0, 1, 2])
    assert sorted(stacked.first.tolist()) == [0, 0, 2]
    assert not should_move(bed, stacked, rates, 0)
    piled = type(stacked)(np.array([0, 0, 0]), blocks, stacked.cache_tokens)
    assert should_move(bed, piled, rates, 0)
    assert not should_move(bed, piled, rates, 0, balance_quality=0.0)
