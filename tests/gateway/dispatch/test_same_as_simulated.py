"""What is simulated is what is served: the gateway chooses as the simulator does, request by request.

The simulator runs a trace; its arrivals and ends are then played to a dispatcher.
"""

from pathlib import Path

import numpy as np
import pytest
from dispatch_doubles import House, plan_of
from numpy.typing import NDArray

from gpusched.policies.draws import random_u64
from gpusched.policies.routing import choice
from gpusched.policies.routing.live import LiveRouter
from gpusched.policies.routing.policy import ROUTING, routing_policy
from gpusched.policies.views import Request
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import expected_output_tokens, simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Prefixes, Trace

ENGINES = 4
STEP_S = np.full(9000, 0.02)
TIMING = CompiledTiming(STEP_S, STEP_S, np.zeros(9000), 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)
BLOCK = 64

OWN = """
def fewest_with_a_bonus(replica, request, bonus=2.0):
    return replica.requests - bonus * replica.has_prefix + 0.001 * replica.position
"""


def trace_of(requests: int, seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(0.012, requests))
    output = rng.integers(5, 90, requests).astype(np.int32)
    family = rng.zipf(1.6, requests) % 12
    rows, offsets = [], [0]
    for i in range(requests):
        depth = 1 + int(rng.integers(0, 5))
        ids = [int(family[i]) * 8 + j for j in range(depth)]
        rows += ids
        offsets.append(offsets[-1] + len(ids))
    lengths = np.diff(offsets)
    prompt = (lengths * BLOCK + rng.integers(1, BLOCK, requests)).astype(np.int32)
    _, dense = np.unique(rows, return_inverse=True)
    prefix = Prefixes(np.array(offsets, np.int64), dense.astype(np.int32), BLOCK)
    return Trace(arrival_s, prompt, output, prefix=prefix)


def simulated(
    trace: Trace, routing: str, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    pool = Pool(
        "main", TIMING, 100_000, replicas=ENGINES, max_num_seqs=4096, max_num_batched_tokens=8192
    )
    result = simulate(Fleet((pool,), routing=routing), trace, seed=seed)
    assert not result.rejected.any()
    return result.replica, result.finish_s


def served(
    trace: Trace, finish_s: NDArray[np.float64], routing: str, seed: int
) -> tuple[list[int], list[str]]:
    expected = expected_output_tokens(trace)
    house = House(
        plan_of(
            ENGINES, routing=routing, engine={"max_num_seqs": 4096, "max_num_batched_tokens": 8192}
        ),
        seed=seed,
    )
    events = sorted(
        [(float(t), 1, i) for i, t in enumerate(trace.arrival_s)]
        + [(float(t), 0, i) for i, t in enumerate(finish_s)]
    )
    exchanges = {}
    for time_s, arrives, i in events:
        house.clock.move(time_s)
        if arrives:
            prefix = trace.prefix.block_ids[trace.prefix.offsets[i] : trace.prefix.offsets[i + 1]]
            exchanges[i] = house.submit(
                prompt_tokens=int(trace.prompt_tokens[i]),
                predicted_tokens=expected,
                prefix=tuple(prefix.tolist()),
            )
        else:
            house.relay.answer(exchanges[i], int(trace.output_tokens[i]))
    assert house.loads() == [0] * ENGINES
    return [exchanges[i].engine for i in range(len(trace))], [
        exchanges[i].branch for i in range(len(trace))
    ]


@pytest.mark.parametrize(
    "routing",
    ["round-robin", "random", "least-requests", "least-tokens", "power-of-two", "prefix-affinity",
     "prefix-affinity+slack_requests=2+factor=1.1", "iqr-lexicographic", "own"],
)  # fmt: skip
def test_the_gateway_chooses_as_the_simulator_does(routing, tmp_path: Path):
    if routing == "own":
        file = tmp_path / "mine.py"
        file.write_text(OWN)
        routing = f"{file}:fewest_with_a_bonus"
    trace = trace_of(600, 3)
    replica, finish_s = simulated(trace, routing, 7)
    engines, branches = served(trace, finish_s, routing, 7)
    assert engines == replica.tolist()
    assert len(set(engines)) == ENGINES
    if routing.startswith("prefix"):
        share = branches.count("affinity") / len(branches)
        assert 0.2 < share < 1.0


@pytest.mark.parametrize(
    "name", [n for n, p in ROUTING.items() if p.kind <= choice.SESSION_AFFINITY]
)
def test_a_live_router_is_the_policys_own_function(name):
    rng = np.random.default_rng(0)
    policy = routing_policy(name)
    router = LiveRouter(policy, 5, seed=9)
    for turn in range(300):
        router.load_requests[:] = rng.integers(0, 30, 5)
        router.load_tokens[:] = rng.integers(0, 9000, 5)
        router.ready_s[:] = np.where(rng.random(5) < 0.2, np.inf, 0.0)
        affinity = int(rng.integers(-1, 5))
        with np.errstate(over="ignore"):
            draw = random_u64(9, 2 * turn)
        expected = choice.route(
            policy.kind, turn, np.uint64(draw), affinity, router.ready_s, 1.0,
            router.load_requests, router.load_tokens, 0, 5, policy.slack_requests, policy.factor,
        )  # fmt: skip
        assert router.choose(Request(0.0, 1, 0, 1, 0), affinity, 1.0) == expected
