"""What must hold of simulated pipelines whatever the network."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_scenarios import flows_of, network, requests, setting_of

from gpusched.errors import InputError
from gpusched.sim.pipelines import (
    NodeChange,
    OfflineFeed,
    measured_limits,
    simulate_pipelines,
    summarize,
)
from gpusched.sim.pipelines.build import build, connect
from gpusched.sim.pipelines.edges import compatible, link_shares, without_dead_ends
from gpusched.sim.pipelines.kernel import run
from gpusched.sim.pipelines.reference import Reference
from gpusched.timing.layers import LayerProfile
from gpusched.timing.machines import Machines, Placement
from gpusched.traces.trace import Trace

policies = st.sampled_from(["iwrr", "swarm", "random", "shortest-queue"])


def started(rng, n, layers, routing, partial, trace):
    setting = setting_of(rng, n, layers, routing, partial, False)
    state = build(setting, trace)
    flows = flows_of(rng, setting.machines, setting.placement, partial)
    connect(state, setting, setting.placement.count > 0, flows)
    return setting, state, flows


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), policies, st.booleans(), st.floats(0, 8))
def test_books_balance_at_any_time(seed, n, routing, partial, time_s):
    """Routes cover every layer once and in order; the nodes' KV cache is the sum of the jobs'."""
    rng = np.random.default_rng(seed)
    trace = requests(rng, 40, rate=10.0)
    setting, state, _ = started(rng, n, 5, routing, partial, trace)
    run(state, time_s)
    reserved, most_used = np.zeros(n + 1), np.zeros(n + 1)
    least_used = np.zeros(n + 1)
    for job, route in zip(state.jobs, state.routes, strict=True):
        if not job["live"]:
            continue
        done = 0
        for edge in state.edges[route[: job["hops"]]]:
            to = edge["to"]
            if to < n:
                assert setting.placement.first[to] <= done
                assert edge["layers"] == state.nodes["end"][to] - done
                done = state.nodes["end"][to]
            reserved[to] += job["expected"] * edge["layers"]
            least_used[to] += job["context"] * edge["layers"]
            most_used[to] += (job["context"] + job["tokens"]) * edge["layers"]
        if not job["prompt"] or routing == "iwrr":
            assert done == 5
    np.testing.assert_allclose(state.nodes["kv_reserved"], reserved, atol=1e-6)
    used = state.nodes["kv_used"][:n]
    assert np.all(used >= least_used[:n] - 1e-6)
    assert np.all(used <= most_used[:n] + 1e-6)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), policies, st.booleans())
def test_all_is_answered_and_freed(seed, n, routing, partial):
    rng = np.random.default_rng(seed)
    trace = requests(rng, 30)
    setting, state, _ = started(rng, n, 4, routing, partial, trace)
    run(state, np.inf)
    rows = state.requests
    served = rows["rejected"] == 0
    assert np.array_equal(rows["produced"][served], trace.output_tokens[served])
    assert np.all(rows["finish_s"][served] >= rows["first_s"][served])
    assert np.all(rows["first_s"][served] > rows["dispatched_s"][served])
    assert np.all(rows["dispatched_s"][served] >= rows["arrival_s"][served])
    assert state.g["in_flight"][0] == 0
    assert not state.jobs["live"].any()
    np.testing.assert_allclose(state.nodes["kv_used"], 0, atol=1e-6)
    np.testing.assert_allclose(state.nodes["kv_reserved"], 0, atol=1e-6)
    mark = setting.routing.kv_high_water
    nodes = state.nodes[:n]
    if routing == "iwrr":
        assert np.all(nodes["kv_reserved_peak"] <= mark * nodes["kv_capacity"] + 1e-6)
    free = 0
    job = state.g["free_job"][0]
    while job >= 0:
        free += 1
        job = state.jobs["next"][job]
    assert free == len(state.jobs)


def test_estimate_that_covers_outputs_keeps_the_cache_within_bounds():
    rng = np.random.default_rng(5)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        setting = setting_of(rng, 5, 5, "iwrr+output_share=2", True, False, kv_tokens=1500.0)
        trace = requests(rng, 60, rate=20.0)
        flows = flows_of(rng, setting.machines, setting.placement, True)
        result = simulate_pipelines(
            setting.machines, setting.placement, flows, trace, routing=setting.routing,
            partial_inference=True, mean_output_tokens=6.0,
        )  # fmt: skip
        assert np.all(result.nodes.kv_peak <= 0.9 + 1e-9)


@given(st.integers(0, 2**32 - 1), policies)
@settings(max_examples=25)
def test_slower_clocks_slow_everything(seed, routing):
    """All times and one over all rates scaled by 4: so are all results."""
    rng = np.random.default_rng(seed)
    setting = setting_of(rng, 5, 5, routing, True, False)
    trace = requests(rng, 25)
    flows = flows_of(rng, setting.machines, setting.placement, True)
    m = setting.machines

    def slow(kind):
        return replace(
            kind,
            prompt_layer_s=kind.prompt_layer_s * 4,
            decode_layer_s=kind.decode_layer_s * 4,
            nic_bytes_per_s=kind.nic_bytes_per_s / 4,
        )

    slower = replace(
        m,
        kinds=tuple(map(slow, m.kinds)),
        bandwidth_bytes_per_s=m.bandwidth_bytes_per_s / 4,
        latency_s=m.latency_s * 4,
    )
    late = replace(trace, arrival_s=trace.arrival_s * 4)
    policy = replace(setting.routing, initial_s=setting.routing.initial_s * 4)
    one = simulate_pipelines(
        m, setting.placement, flows, trace, routing=setting.routing, partial_inference=True
    )
    four = simulate_pipelines(
        slower, setting.placement, flows, late, routing=policy, partial_inference=True
    )
    np.testing.assert_allclose(four.finish_s, one.finish_s * 4, rtol=1e-9)
    assert four.iterations == one.iterations


def lone_node(prompt_layer_s=0.05, layers=4):
    profile = LayerProfile(
        "lone",
        np.array([0.0, 100.0]),
        np.array([0.0, prompt_layer_s]),
        np.array([0.0, 1.0]),
        np.array([0.0, 0.01]),
        np.full(layers, 1e7),
        1e12,
    )
    free = np.full((2, 2), 1e15)
    return Machines(
        ("a",), ("r",), np.zeros(1, np.int64), (profile,), free, np.full((2, 2), 1e-9), layers,
        2.0, 8.0,
    )  # fmt: skip


def test_mean_wait_of_one_node_is_that_of_an_m_d_1_queue():
    rng = np.random.default_rng(1)
    count, service_s, load = 200_000, 0.2, 0.7
    arrival_s = np.cumsum(rng.exponential(service_s / load, count))
    trace = Trace(arrival_s, np.full(count, 100, np.int32), np.ones(count, np.int32))
    machines = lone_node()
    flows = np.array([[0.0, 1.0], [1.0, 0.0]])
    placement = Placement(np.zeros(1, np.int64), np.full(1, 4))
    limits = replace(measured_limits(machines), prompt_requests=np.ones(1, np.int64))
    result = simulate_pipelines(machines, placement, flows, trace, limits=limits)
    expected = load * service_s / (2 * (1 - load))
    assert result.nodes.mean_wait_s[0] == pytest.approx(expected, rel=0.03)
    assert result.nodes.busy_share[0] == pytest.approx(load, rel=0.01)
    assert result.busy.sum() * np.diff(result.series_s)[0] == pytest.approx(count * service_s)


def test_latencies_of_one_request():
    machines = replace(lone_node(), latency_s=np.full((2, 2), 0.25))
    trace = Trace(np.array([1.0]), np.array([100], np.int32), np.array([3], np.int32))
    flows = np.array([[0.0, 1.0], [1.0, 0.0]])
    placement = Placement(np.zeros(1, np.int64), np.full(1, 4))
    result = simulate_pipelines(machines, placement, flows, trace)
    assert result.ttft_s[0] == pytest.approx(0.5 + 4 * 0.05)
    assert result.tpot_s[0] == pytest.approx(0.5 + 4 * 0.01)
    figures = summarize(result)
    assert figures["itl_s"]["mean"] == pytest.approx(0.54)
    assert figures["completed"] == 1
    assert result.hops[0] == 1


def test_partial_inference_opens_a_pipeline():
    """A holds layers 0 and 1, B 1 and 2: B must run layer 2 only."""
    machines = network(np.random.default_rng(0), 2, 3)
    placement = Placement(np.array([0, 1]), np.array([2, 2]))
    flows = np.array([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
    trace = requests(np.random.default_rng(0), 5)
    with pytest.raises(InputError, match="no pipeline"):
        simulate_pipelines(machines, placement, flows, trace)
    result = simulate_pipelines(machines, placement, flows, trace, partial_inference=True)
    assert np.all(result.hops == 2)


def test_wrong_input_is_named():
    machines = network(np.random.default_rng(0), 2, 3)
    trace = requests(np.random.default_rng(0), 5)
    good = Placement(np.array([0, 2]), np.array([2, 1]))
    flows = np.ones((3, 3))
    with pytest.raises(InputError, match=r"flows: shape \(2, 2\), but 2 nodes need \(3, 3\)"):
        simulate_pipelines(machines, good, np.ones((2, 2)), trace)
    with pytest.raises(InputError, match="n1: layers 2 to 3, but the model's are 0 to 2"):
        simulate_pipelines(machines, Placement(np.array([0, 2]), np.array([2, 2])), flows, trace)
    with pytest.raises(InputError, match="n0: holds 4 layers, may hold 3"):
        simulate_pipelines(machines, Placement(np.array([0, 2]), np.array([4, 1])), flows, trace)
    with pytest.raises(InputError, match="changes: no node 7"):
        simulate_pipelines(machines, good, flows, trace, changes=[NodeChange(1.0, 7)])


def test_too_long_prompts_are_rejected_and_the_rest_served():
    machines = network(np.random.default_rng(0), 1, 3, kv_tokens=1e6)
    placement = Placement(np.zeros(1, np.int64), np.full(1, 3))
    flows = np.array([[0.0, 1.0], [1.0, 0.0]])
    trace = Trace(
        np.array([0.0, 0.1, 0.2]), np.array([50, 401, 60], np.int32), np.full(3, 2, np.int32)
    )
    result = simulate_pipelines(machines, placement, flows, trace)
    assert result.rejected.tolist() == [False, True, False]
    assert np.isfinite(result.finish_s).tolist() == [True, False, True]


def test_failed_node_is_survived_on_the_other_path():
    """Two nodes with all layers: one fails for a while, nothing is lost."""
    rng = np.random.default_rng(2)
    machines = network(rng, 2, 3, kv_tokens=1e5)
    placement = Placement(np.zeros(2, np.int64), np.full(2, 3))
    flows = np.array([[0, 0, 1.0], [0, 0, 1.0], [1.0, 1.0, 0]])
    trace = requests(rng, 40)
    changes = [NodeChange(3.0, 0), NodeChange(8.0, 0, up=True)]
    asked = []

    def solve_flows(up):
        asked.append(up.tolist())
        return flows * np.append(up, True)[:, None] * np.append(up, True)[None, :]

    result = simulate_pipelines(
        machines, placement, flows, trace, changes=changes, solve_flows=solve_flows
    )
    assert asked == [[False, True], [True, True]]
    assert result.restarts.sum() > 0
    assert np.isfinite(result.finish_s).all()
    assert np.array_equal(result.produced_tokens, trace.output_tokens)
    undisturbed = simulate_pipelines(machines, placement, flows, trace)
    assert result.finish_s.sum() > undisturbed.finish_s.sum()


def test_closed_loop_keeps_its_number():
    rng = np.random.default_rng(3)
    machines = network(rng, 3, 3, kv_tokens=1e6)
    placement = Placement(np.array([0, 1, 2]), np.ones(3, np.int64))
    flows = np.where(compatible(machines, placement, partial_inference=False), 1.0, 0.0)
    trace = requests(rng, 200)
    result = simulate_pipelines(
        machines, placement, flows, trace, offline=OfflineFeed(5, None, 0.0)
    )
    assert np.isfinite(result.finish_s).all()
    events = np.sort(result.finish_s)
    for i, time_s in enumerate(events[:150]):
        inside = (result.arrival_s <= time_s).sum() - (i + 1)
        assert inside == 5 or time_s < 0.4


def test_nic_shares_follow_the_flow():
    machines = network(np.random.default_rng(0), 3, 2)
    nic = [machines.kinds[k].nic_bytes_per_s for k in machines.kind_of]
    machines = replace(machines, bandwidth_bytes_per_s=np.full((4, 4), 1e12))
    placement = Placement(np.array([0, 1, 1]), np.array([1, 1, 1]))
    edges = compatible(machines, placement, partial_inference=False)
    flows = np.zeros((4, 4))
    flows[3, 0], flows[0, 1], flows[0, 2], flows[1, 3], flows[2, 3] = 4, 3, 1, 3, 1
    shares = link_shares(machines, edges, flows)
    assert shares[0, 1] == pytest.approx(0.75 * nic[0])
    assert shares[0, 2] == pytest.approx(0.25 * nic[0])
    assert link_shares(machines, edges, None)[0, 2] == pytest.approx(0.5 * nic[0])


def test_dead_ends_go_to_a_fixed_point():
    edges = np.zeros((5, 5), np.bool_)
    edges[4, 0] = edges[0, 1] = edges[1, 2] = edges[4, 3] = edges[3, 4] = True
    kept = without_dead_ends(edges, np.ones(4, np.bool_))
    assert np.argwhere(kept).tolist() == [[3, 4], [4, 3]]


def test_routes_of_the_reference_cover_all_layers_once():
    rng = np.random.default_rng(9)
    setting = setting_of(rng, 6, 5, "iwrr", True, False, 2e4)
    trace = requests(rng, 30)
    flows = flows_of(rng, setting.machines, setting.placement, True)
    reference = Reference(setting, trace, flows).run()
    end = setting.placement.first + setting.placement.count
    for route in reference.routes:
        ends = [int(end[to]) for _, to in route[:-1]]
        assert ends == sorted(set(ends))
        assert ends[-1] == 5


@pytest.mark.parametrize("routing", ["iwrr", "random", "shortest-queue"])
def test_progress_changes_nothing(routing):
    rng = np.random.default_rng(4)
    setting = setting_of(rng, 5, 5, routing, True, False, kv_tokens=1500.0)
    trace = requests(rng, 300, rate=10.0)
    flows = flows_of(rng, setting.machines, setting.placement, True)
    shares = []
    results = [
        simulate_pipelines(
            setting.machines, setting.placement, flows, trace, routing=setting.routing,
            partial_inference=True, progress=progress,
        )
        for progress in (None, shares.append)
    ]  # fmt: skip
    assert np.array_equal(results[0].finish_s, results[1].finish_s, equal_nan=True)
    assert len(shares) > 50
    assert shares == sorted(shares)
