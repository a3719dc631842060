import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from block_instances import drawn, servers
from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.blocks.chain import cheapest_chain_s
from gpusched.planning.blocks.conservative import place_conservatively, place_for_rate
from gpusched.planning.blocks.petals import petals_blocks, place_as_petals
from gpusched.planning.blocks.testbeds import HIDDEN, OUTPUT, PROMPT, clustered, scattered
from gpusched.policies.routing.ws_rr import POLICIES
from gpusched.sim.chains.metrics import caches_in_use
from gpusched.sim.chains.reference import back_off_s, simulate_chains_slowly
from gpusched.sim.chains.simulate import ChainLoad, simulate_chains
from gpusched.timing.chains import Placed


@pytest.mark.parametrize(
    ("raw_ms", "waited_ms"),
    [(0, 0), (1, 1000), (1000, 1000), (1001, 3000), (3500, 7000), (10_000, 15_000), (64_000, 123_000)],
)  # fmt: skip
def test_clients_retry(raw_ms, waited_ms):
    assert back_off_s(raw_ms / 1e3) == pytest.approx(waited_ms / 1e3)
    # one server with cache for one request: the second waits for the first's end
    bed = servers([2.25], [0.5], [0.0], blocks=2, cache=0.125, prefill=raw_ms / 1e3)
    placed = Placed(np.zeros(1, int), np.array([2]), np.array([2]))
    both = ChainLoad.of([0.0, 0.0], 0, 1)
    assert simulate_chains(bed, placed, both).wait_s.tolist() == [0.0, waited_ms / 1e3]
    assert simulate_chains(bed, placed, both, retries=False).wait_s[1] == raw_ms / 1e3


def load(rng, count, clients, gap_s):
    return ChainLoad.of(
        np.cumsum(rng.exponential(gap_s, count)), rng.integers(0, 3, count),
        rng.integers(1, 4, count), rng.integers(0, clients, count),
    )  # fmt: skip


def random_placement(rng, bed):
    most = np.minimum(bed.memory_bytes // bed.block_bytes, bed.blocks).astype(int)
    blocks = rng.integers(0, most + 1)
    first = rng.integers(0, bed.blocks - blocks + 1)
    return Placed(first, blocks, bed.cache_room(blocks))


def check_caches(placed, result):
    for j, (_, used) in enumerate(caches_in_use(result, len(placed.first))):
        assert used.max(initial=0.0) <= placed.cache_tokens[j]


@given(
    st.integers(0, 10_000), st.sampled_from(sorted(POLICIES)), st.booleans(),
    st.sampled_from([0.3, 3.0, 30.0]), st.sampled_from([0.0, 5.0]),
)  # fmt: skip
def test_compiled_equals_plain(seed, routing, retries, gap_s, allocation_s):
    rng = np.random.default_rng(seed)
    bed = drawn(seed, most=7, blocks=(3, 9), clients=2)
    placed = random_placement(rng, bed)
    requests = load(rng, 40, bed.clients, gap_s)
    options = {"routing": routing, "retries": retries, "allocation_s": allocation_s}
    fast = simulate_chains(bed, placed, requests, **options)
    slow = simulate_chains_slowly(bed, placed, requests, **options)
    np.testing.assert_array_equal(fast.rejected, slow.rejected)
    np.testing.assert_allclose(fast.finish_s, slow.finish_s, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fast.first_token_s, slow.first_token_s, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fast.wait_s, slow.wait_s, rtol=1e-9, atol=1e-9)
    check_caches(placed, fast)
    of = np.bincount(fast.visit_request, fast.visit_blocks, 40)
    np.testing.assert_array_equal(of, np.where(fast.rejected, 0, bed.blocks))


@given(st.integers(0, 10_000))
def test_the_exact_router_ends_a_request_no_later_than_ws_rr(seed):
    rng = np.random.default_rng(seed)
    bed = drawn(seed, most=7, blocks=(3, 9))
    placed = random_placement(rng, bed)
    requests = load(rng, 25, 1, 0.5)
    # the same requests before, so the same reservations; only the last one's router differs
    for last in range(1, 25, 6):
        first = requests.head(last)
        for retries in (False, True):
            ends = [
                simulate_chains(bed, placed, first, routing=r, retries=retries)
                for r in ("ws-rr", "ws-rr-exact")
            ]
            same = np.flatnonzero(ends[0].finish_s[: last - 1] != ends[1].finish_s[: last - 1])
            if not len(same) and not ends[0].rejected[-1]:
                assert ends[1].finish_s[-1] <= ends[0].finish_s[-1] + 1e-9


@given(st.integers(0, 10_000))
def test_with_endless_memory_routing_is_the_shortest_path(seed):
    rng = np.random.default_rng(seed)
    bed = drawn(seed, most=6)
    placed = random_placement(rng, bed)
    endless = Placed(placed.first, placed.blocks, np.full(bed.count, 10**12))
    requests = load(rng, 20, 1, 0.01)
    for routing in ("ws-rr", "ws-rr-exact"):
        result = simulate_chains(bed, endless, requests, routing=routing)
        for r in range(20):
            visit = bed.request_s(0, requests.prompt_tokens[r], requests.output_tokens[r])
            best = cheapest_chain_s(bed, placed, visit)
            took = result.finish_s[r] - requests.arrival_s[r]
            assert (np.isnan(took) and best == np.inf) or took == pytest.approx(best, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_nobody_waits_while_the_design_concurrency_holds(seed, concurrency):
    bed = drawn(seed, most=5)
    try:
        placed = place_conservatively(bed, concurrency, 4).placed
    except InfeasibleError:
        return
    rng = np.random.default_rng(seed)
    requests = load(rng, 30, 1, 2.0)
    short = ChainLoad.of(requests.arrival_s, 2, 2)
    result = simulate_chains(bed, placed, short)
    arrival, finish = short.arrival_s, result.finish_s
    for r in range(30):
        before = (finish[:r] > arrival[r]).sum()
        if before < concurrency:
            assert result.wait_s[r] == 0.0


MEASURED = {
    # rate, client: CG-BP and WS-RR, PETALS, PETALS' placement under WS-RR; ms a token
    (0.1, "a100"): (369, 961, 961), (0.1, "slice"): (561, 827, 827),
    (0.5, "a100"): (354, 2062, 1908), (0.5, "slice"): (544, 1685, 1680),
    (1.0, "a100"): (354, 2612, 2373), (1.0, "slice"): (544, 1902, 1895),
}  # fmt: skip


@pytest.mark.parametrize(("rate", "beside"), list(MEASURED))
def test_clustered_testbed(rate, beside):
    bed, rates = clustered(beside)
    ours = place_for_rate(bed, rate, PROMPT, OUTPUT).placed
    blocks, figures = petals_blocks(bed, HIDDEN), []
    for seed in range(5):
        requests = ChainLoad.poisson(100, rate, PROMPT, OUTPUT, seed=seed)
        joining = np.random.default_rng(seed).permutation(bed.count)
        theirs = place_as_petals(bed, blocks, rates, joining)
        runs = ((ours, "ws-rr"), (theirs, "petals"), (theirs, "ws-rr"))
        figures.append(
            [simulate_chains(bed, p, requests, routing=r).per_token_s.mean() * 1e3 for p, r in runs]
        )
    cg, petals, ablation = np.mean(figures, axis=0)
    expected = MEASURED[rate, beside]
    # PETALS' depends on the draws of arrivals and of the order in which servers join
    assert cg == pytest.approx(expected[0], rel=0.01)
    assert petals == pytest.approx(expected[1], rel=0.15)
    assert ablation == pytest.approx(expected[2], rel=0.15)


def test_a_hundred_servers_and_many_requests():
    rng = np.random.default_rng(0)
    at = rng.uniform(0, 1, (60, 2))
    rtt_s = 0.005 + 0.3 * np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1))
    bed, _ = scattered(rtt_s, 100, clients=5)
    placed = place_for_rate(bed, 2.0, PROMPT, OUTPUT).placed
    requests = ChainLoad.poisson(20_000, 6.0, PROMPT, OUTPUT, clients=5)
    for routing in ("ws-rr", "petals"):
        result = simulate_chains(bed, placed, requests, routing=routing)
        assert not result.rejected.any()
        check_caches(placed, result)
        few = requests.head(150)
        slow = simulate_chains_slowly(bed, placed, few, routing=routing)
        np.testing.assert_allclose(result.finish_s[:150], slow.finish_s, rtol=1e-9)


def test_what_no_chain_can_hold_is_rejected():
    bed = servers([3, 3], [1, 1], [1, 1], blocks=4, cache=0.25)
    placed = Placed(np.array([0, 2]), np.array([2, 2]), bed.cache_room(np.array([2, 2])))
    result = simulate_chains(bed, placed, ChainLoad.of([0, 1], [1, 3], 1))
    assert result.rejected.tolist() == [False, True]
    nowhere = Placed(np.zeros(2, int), np.zeros(2, int), np.zeros(2, int))
    assert simulate_chains(bed, nowhere, ChainLoad.of([0.0], 1, 1)).rejected.all()
    cut = servers([3, 3], [1, 1], [[1, np.inf]], blocks=4)
    for routing in POLICIES:
        assert simulate_chains(
            cut, placed, ChainLoad.of([0.0], 0, 1), routing=routing
        ).rejected.all()


def test_bad_input_is_refused():
    bed = servers([3, 3], [1, 1], [1, 1], blocks=4)
    placed = Placed(np.array([0, 2]), np.array([2, 2]), np.array([4, 4]))
    with pytest.raises(InputError, match="did you mean ws-rr"):
        simulate_chains(bed, placed, ChainLoad.of([0.0], 1, 1), routing="ws-r")
    with pytest.raises(InputError, match="order"):
        simulate_chains(bed, placed, ChainLoad.of([1.0, 0.0], 1, 1))
