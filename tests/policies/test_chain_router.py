import numpy as np
import pytest

from block_instances import drawn, servers
from gpusched.errors import InputError
from gpusched.policies.routing.chain_router import OVERRUN_S, ChainRouter
from gpusched.policies.routing.ws_rr import POLICIES
from gpusched.sim.chains.simulate import ChainLoad, simulate_chains
from gpusched.timing.chains import Placed


@pytest.mark.parametrize("routing", sorted(POLICIES))
@pytest.mark.parametrize("seed", range(6))
def test_live_is_the_simulator_while_requests_end_on_time(routing, seed):
    rng = np.random.default_rng(seed)
    bed = drawn(seed, most=7, blocks=(3, 9), clients=2)
    most = np.minimum(bed.memory_bytes // bed.block_bytes, bed.blocks).astype(int)
    blocks = np.maximum(most - rng.integers(0, 2, bed.count), 0)
    placed = Placed(rng.integers(0, bed.blocks - blocks + 1), blocks, bed.cache_room(blocks))
    n = 200
    load = ChainLoad.of(
        np.cumsum(rng.exponential(1.0, n)), rng.integers(0, 3, n), rng.integers(1, 4, n),
        rng.integers(0, 2, n),
    )  # fmt: skip
    result = simulate_chains(bed, placed, load, routing=routing)
    router, ends = ChainRouter(bed, placed, routing=routing, retries=True), {}
    for r in range(n):
        now = load.arrival_s[r]
        for done in [q for q, end in ends.items() if end <= now]:
            router.finished(done)
            del ends[done]
        found = router.route(r, now, *(int(x[r]) for x in (load.prompt_tokens, load.output_tokens, load.client)))  # fmt: skip
        assert (found is None) == result.rejected[r]
        if found is not None:
            ends[r] = found.finish_s
            at = slice(result.visits[r], result.visits[r + 1])
            assert [j for j, _ in found.chain] == result.visit_server[at].tolist()
            assert found.finish_s == pytest.approx(result.finish_s[r], rel=1e-12)


def one_server():
    bed = servers([2.25], [0.5], [0.0], blocks=2, cache=0.125, prefill=10)
    return ChainRouter(bed, Placed(np.zeros(1, int), np.array([2]), np.array([2])))


def test_caches_of_early_and_late_requests():
    router = one_server()
    first = router.route("a", 0.0, 0, 1)
    assert (first.wait_s, first.finish_s) == (0.0, 10.0)
    assert router.route("b", 1.0, 0, 1).wait_s == 9.0
    router.finished("b")
    router.finished("a")
    assert router.route("c", 2.0, 0, 1).wait_s == 0.0
    # not done in time: its cache is not free
    late = router.route("d", 13.0, 0, 1)
    assert late.wait_s == OVERRUN_S
    router.finished("c")
    router.finished("never routed")
    with pytest.raises(InputError, match="already"):
        router.route("d", 13.0, 0, 1)
    assert router.route("e", 13.0, 0, 5) is None


def test_many_requests_wait_in_line():
    router = one_server()
    waits = [router.route(r, 0.0, 0, 1).wait_s for r in range(300)]
    assert waits == [10.0 * r for r in range(300)]
