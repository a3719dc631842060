"""The live router decides as the simulator does."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_scenarios import flows_of, requests, setting_of

from gpusched.policies.routing.pipeline_router import PipelineRouter
from gpusched.sim.pipelines.build import build, connect
from gpusched.sim.pipelines.kernel import run
from gpusched.traces.trace import Trace


def router_of(setting, state, flows):
    n = len(setting.machines.names)
    return PipelineRouter(
        flows,
        setting.placement.first,
        setting.placement.count,
        state.nodes["kv_capacity"][:n],
        setting.limits.prompt_tokens,
        setting.mean_output_tokens,
        setting.routing,
    )


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.booleans())
def test_same_pipelines_as_the_simulator(seed, n, partial):
    rng = np.random.default_rng(seed)
    setting = setting_of(rng, n, 5, "iwrr", partial, False, rng.choice([1500.0, 2e4]))
    trace = requests(rng, 30)
    trace = Trace(np.zeros(30), trace.prompt_tokens, trace.output_tokens)
    state = build(setting, trace)
    flows = flows_of(rng, setting.machines, setting.placement, partial)
    connect(state, setting, setting.placement.count > 0, flows)
    router = router_of(setting, state, flows)
    run(state, 0.0)
    longest = state.g["longest_prompt"][0]
    for request in range(30):
        if trace.prompt_tokens[request] > longest:
            continue
        nodes = router.route(int(trace.prompt_tokens[request]))
        job = np.flatnonzero((state.jobs["live"] > 0) & (state.jobs["request"] == request))
        if nodes is None:
            assert not len(job)
            break
        route = state.routes[job[0], : state.jobs["hops"][job[0]]]
        assert nodes == tuple(state.edges["to"][route][:-1])
    np.testing.assert_allclose(router.kv_reserved, state.nodes["kv_reserved"][:n])


def two_stages():
    """Node 0 holds layer 0; nodes 1 and 2 both hold layer 1."""
    flows = np.zeros((4, 4))
    flows[3, 0], flows[0, 1], flows[0, 2], flows[1, 3], flows[2, 3] = 4, 3, 1, 3, 1
    return flows, np.array([0, 1, 1]), np.ones(3, np.int64)


def test_traffic_follows_the_flow_and_decodes_count():
    flows, first, count = two_stages()
    router = PipelineRouter(flows, first, count, np.full(3, 1e9), np.full(3, 2048), 200.0)
    taken = [router.route(100) for _ in range(400)]
    assert taken.count((0, 1)) == 300
    for _ in range(3000):
        router.decode((0, 1), 10)
    later = [router.route(100) for _ in range(100)]
    assert later.count((0, 2)) == 100


def test_dead_end_changes_nothing_and_finish_frees():
    flows, first, count = two_stages()
    capacity = np.array([1e9, 1000.0, 1000.0])
    router = PipelineRouter(flows, first, count, capacity, np.full(3, 2048), 0.0)
    first_route = router.route(500)
    second_route = router.route(500)
    assert {first_route, second_route} == {(0, 1), (0, 2)}
    load, reserved = router.load.copy(), router.kv_reserved.copy()
    assert router.route(500) is None
    assert np.array_equal(router.load, load)
    assert np.array_equal(router.kv_reserved, reserved)
    router.finish(first_route, 500)
    assert router.route(500) == first_route


def test_new_flows_carry_loads_over():
    flows, first, count = two_stages()
    router = PipelineRouter(flows, first, count, np.full(3, 1e9), np.full(3, 2048), 0.0)
    for _ in range(8):
        router.route(100)
    without = flows.copy()
    without[0, 1] = without[1, 3] = 0.0
    without[0, 2] = without[2, 3] = without[3, 0] = 1.0
    router.resolve(without)
    assert {router.route(100) for _ in range(5)} == {(0, 2)}
    router.resolve(flows)
    assert router.load[0, 1] == router.load[0, 2]
