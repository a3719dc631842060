"""The compiled simulator of pipelines against the plain one, on random small networks."""

import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_scenarios import flows_of, requests, setting_of

from gpusched.sim.pipelines import NodeChange, simulate_pipelines
from gpusched.sim.pipelines.reference import Reference

EXAMPLES = 2000 if os.environ.get("GPUSCHED_FULL") == "1" else 60


def simulate(setting, flows, trace, end_s, changes=(), solve_flows=None):
    return simulate_pipelines(
        setting.machines,
        setting.placement,
        flows,
        trace,
        routing=setting.routing,
        partial_inference=setting.partial_inference,
        offline=setting.offline or False,
        warmup_s=setting.warmup_s,
        duration_s=end_s - setting.warmup_s,
        seed=setting.seed,
        limits=setting.limits,
        mean_output_tokens=setting.mean_output_tokens,
        copy_bytes_per_s=setting.copy_bytes_per_s,
        changes=changes,
        solve_flows=solve_flows,
    )


def assert_equal(result, reference):
    known = reference.arrived
    assert len(result.arrival_s) == known
    for ours, theirs in (
        (result.arrival_s, reference.arrival_s),
        (result.dispatched_s, reference.dispatched_s),
        (result.first_token_s, reference.first_s),
        (result.finish_s, reference.finish_s),
    ):
        np.testing.assert_allclose(ours, theirs[:known], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(result.produced_tokens, reference.produced[:known])
    np.testing.assert_array_equal(result.restarts, reference.restarts[:known])
    np.testing.assert_array_equal(result.rejected, reference.rejected[:known])
    assert result.decode_tokens == reference.decode_tokens
    for node, ours in zip(reference.nodes, result.nodes.iterations, strict=True):
        assert ours == node.iterations
    peaks = [
        node.peak / max(c, 1.0) for node, c in zip(reference.nodes, reference.capacity, strict=True)
    ]
    np.testing.assert_allclose(result.nodes.kv_peak, peaks, rtol=1e-12)


@settings(max_examples=EXAMPLES)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 7),
    st.integers(2, 6),
    st.sampled_from(["iwrr", "swarm", "random", "shortest-queue"]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 40),
)
def test_equal_to_the_plain_simulator(seed, n, layers, routing, partial, offline, count):
    rng = np.random.default_rng(seed)
    setting = setting_of(rng, n, layers, routing, partial, offline, rng.choice([1500.0, 20000.0]))
    trace = requests(rng, count)
    flows = flows_of(rng, setting.machines, setting.placement, partial)
    end_s = 1e4
    result = simulate(setting, flows, trace, end_s)
    assert_equal(result, Reference(setting, trace, flows).run(end_s))


@settings(max_examples=EXAMPLES)
@given(st.integers(0, 2**32 - 1), st.integers(3, 7), st.integers(1, 3), st.booleans())
def test_equal_with_failures_and_joins(seed, n, outages, partial):
    rng = np.random.default_rng(seed)
    setting = setting_of(rng, n, 4, "iwrr", partial, False, 20000.0)
    trace = requests(rng, 30)
    flows = flows_of(rng, setting.machines, setting.placement, partial)
    times = np.sort(rng.uniform(0, 12, 2 * outages))
    nodes = rng.choice(n, outages)
    changes = [
        NodeChange(float(times[2 * i + j]), int(node), bool(j))
        for i, node in enumerate(nodes)
        for j in (0, 1)
    ]

    def solve_flows(up):
        scale = np.random.default_rng(int(up @ (1 << np.arange(n))))
        return flows_of(scale, setting.machines, setting.placement, partial, up)

    result = simulate(setting, flows, trace, 1e4, changes, solve_flows)
    assert_equal(result, Reference(setting, trace, flows, changes, solve_flows).run(1e4))
    served = ~result.rejected & ~np.isnan(result.finish_s)
    np.testing.assert_array_equal(
        result.produced_tokens[served], trace.output_tokens[: len(served)][served]
    )
