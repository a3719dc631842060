import numpy as np
import pytest

from block_instances import drawn, servers, toy
from gpusched.errors import InfeasibleError
from gpusched.planning.blocks.bounds import decode_bound_s, lone_optimum, lone_placement
from gpusched.planning.blocks.chain import cheapest_chain_s, decode_visits
from gpusched.planning.blocks.check import problems
from gpusched.planning.blocks.conservative import blocks_held, place_conservatively
from gpusched.planning.blocks.exact import place_exactly
from gpusched.planning.blocks.improve import improve
from gpusched.planning.blocks.offline import place_and_route, route_over
from gpusched.planning.blocks.published import place_as_published
from gpusched.planning.blocks.testbeds import OUTPUT, PROMPT, clustered
from gpusched.sim.chains.simulate import ChainLoad, simulate_chains
from gpusched.timing.chains import Placed


def solve(method, bed, clients, tokens=1):
    try:
        found = method(bed, np.asarray(clients), tokens)
    except InfeasibleError:
        return None
    assert not problems(bed, found.placed, found.chains, tokens)
    return found


@pytest.mark.parametrize("seed", range(24))
def test_columns_equal_the_published_program_and_bound_the_greedy(seed):
    bed = drawn(seed, most=3, blocks=(3, 5), clients=1 + seed % 2)
    requests = 1 + seed % 3
    clients = np.arange(requests) % bed.clients
    columns = solve(place_exactly, bed, clients)
    greedy = solve(place_and_route, bed, clients)
    if columns is None:
        assert greedy is None
    elif greedy is not None:
        assert columns.token_s <= greedy.token_s + 1e-6
        bound = place_conservatively(bed, requests, 1).bound_s
        assert greedy.token_s <= requests * bound + 1e-9
    if (bed.memory_bytes >= bed.block_bytes).all():
        # the published program wants a block on every server
        published = solve(place_as_published, bed, clients)
        assert (published is None) == (columns is None)
        if columns is not None:
            assert columns.token_s == pytest.approx(published.token_s, abs=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_bounds_hold_and_one_request_is_exact(seed):
    bed, requests = drawn(seed), 1 + seed % 4
    clients = np.zeros(requests, int)
    found = solve(place_exactly, bed, clients)
    if found is None:
        return
    assert decode_bound_s(bed, 1, requests) <= found.token_s / requests + 1e-9
    assert found.bound_s == pytest.approx(found.token_s, abs=1e-6)
    alone, chain = lone_optimum(bed, decode_visits(bed, 0), 1)
    placed = lone_placement(bed, chain)
    assert not problems(bed, placed, [chain], 1)
    assert alone == pytest.approx(solve(place_exactly, bed, [0]).token_s, abs=1e-6)
    assert cheapest_chain_s(bed, placed, decode_visits(bed, 0)) == pytest.approx(alone)


def test_the_conservative_placement_is_optimal_for_one_request_on_the_testbed():
    bed, _ = clustered()
    alone, _ = lone_optimum(bed, decode_visits(bed, 0), PROMPT + OUTPUT)
    greedy = place_conservatively(bed, 1, PROMPT + OUTPUT)
    assert greedy.bound_s == pytest.approx(alone, rel=1e-12)


def test_toy_by_every_method():
    clients = np.zeros(2, int)
    for method in (place_and_route, place_exactly, place_as_published):
        assert solve(method, toy(), clients).token_s == pytest.approx(16.0)


def test_routing_over_a_placement_shares_short_caches():
    # the quick server has cache for one request only; the other must take the slow one
    bed = servers([2.3, 4], [1, 3], [1, 1], blocks=2)
    placed = Placed(np.array([0, 0]), np.array([2, 2]), np.array([2, 8]))
    found = route_over(bed, placed, np.zeros(2, int), 1)
    assert found.token_s == pytest.approx((1 + 2) + (1 + 6))
    assert sorted(j for chain in found.chains for j, _ in chain) == [0, 1]
    assert not problems(
        bed, Placed(placed.first, placed.blocks, np.array([1, 8])), found.chains[:0], 1
    )
    assert route_over(bed, placed, np.zeros(20, int), 1).status == "infeasible"


def test_running_out_of_time_still_answers():
    bed, clients = drawn(7, most=5), np.zeros(3, int)
    for method in (place_exactly, place_as_published):
        found = method(bed, clients, 1, time_limit_s=0.01)
        assert not problems(bed, found.placed, found.chains, 1)
        assert found.bound_s <= found.token_s + 1e-9


def test_too_many_requests_are_refused():
    bed = servers([3, 3], [1, 1], [1, 1], blocks=4)
    for method in (place_exactly, place_as_published):
        with pytest.raises(InfeasibleError, match="memory"):
            method(bed, np.zeros(9, int), 1)


def test_the_checker_finds_what_is_wrong():
    bed = servers([2, 2], [1, 1], [1, 1], blocks=3)
    good = Placed(np.array([0, 1]), np.array([1, 2]), np.array([4, 0]))
    assert problems(bed, good) == []
    assert "nobody holds block 2" in problems(
        bed, Placed(np.array([0, 1]), np.array([1, 1]), np.array([0, 0]))
    )
    assert "needs" in problems(bed, Placed(good.first, good.blocks, np.array([5, 0])))[0]
    assert "of 3" in problems(bed, Placed(np.array([0, 2]), np.array([1, 2]), np.array([0, 0])))[0]
    assert any("runs 1 of 3" in line for line in problems(bed, good, [[(0, 1)]], 1))
    assert any("room for 0" in line for line in problems(bed, good, [[(0, 1), (1, 2)]], 1))
    assert any("which holds" in line for line in problems(bed, good, [[(1, 2), (0, 1)]], 1))


@pytest.mark.parametrize("seed", range(12))
def test_local_search_never_loses_and_stays_feasible(seed):
    bed, load = drawn(seed, most=5), ChainLoad.of(np.zeros(3), 0, 1)
    try:
        begin = place_conservatively(bed, 3, 1).placed
    except InfeasibleError:
        return

    def cost(placed):
        found = simulate_chains(bed, placed, load, routing="ws-rr-exact", retries=False)
        return float(found.rejected.sum()), float(np.nansum(found.finish_s))

    placed, least = improve(bed, begin, blocks_held(bed, 1, 1), cost, moves=60, seed=seed)
    assert not problems(bed, placed)
    assert least == cost(placed) <= cost(begin)
