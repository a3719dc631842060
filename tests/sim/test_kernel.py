"""The leaping kernel against the step-by-step reference, on random specs of every feature."""

import os

import numpy as np
import pytest
from fleets import scenarios
from hypothesis import HealthCheck, given, settings

from gpusched.sim.reference import Reference
from gpusched.sim.simulate import simulate

EXAMPLES = 3000 if os.environ.get("GPUSCHED_FULL") == "1" else 150


def assert_equal(fleet, trace, loop, seed, stepping=Reference):
    result = simulate(fleet, trace, closed_loop=loop, seed=seed)
    reference = stepping(fleet, trace, loop, seed).run()
    rows = reference.requests

    def column(name):
        return np.array([getattr(row, name) for row in rows], np.float64)

    np.testing.assert_array_equal(result.rejected, column("rejected").astype(bool))
    np.testing.assert_array_equal(result.preemptions, column("preemptions"))
    np.testing.assert_array_equal(result.cached_tokens, column("cached"))
    served = ~result.rejected
    for ours, theirs in (
        (result.arrival_s, column("arrival_s")),
        (result.admitted_s, column("admitted_s")),
        (result.first_token_s, column("first_token_s")),
        (result.finish_s, column("last_token_s")),
    ):
        np.testing.assert_allclose(ours[served], theirs[served], rtol=1e-9, atol=1e-9)
    gaps = np.array(reference.gaps)
    assert result.gaps.counts.sum() == len(gaps)
    if len(gaps):
        assert result.gaps.total_s == pytest.approx(gaps.sum(), rel=1e-9)
        assert result.gaps.max_s == pytest.approx(gaps.max(), rel=1e-9)
        for name, percent in (("p50", 50), ("p99", 99)):
            exact = np.sort(gaps)[max(int(np.ceil(percent / 100 * len(gaps))) - 1, 0)]
            assert result.gaps.spread()[name] == pytest.approx(exact, rel=0.011)
    for use, index in zip(result.pools, range(len(fleet.pools)), strict=True):
        engines = [e for e in reference.engines if e.pool_index == index]
        lanes = fleet.pools[index].lanes / fleet.pools[index].replicas
        assert use.iterations == sum(e.iterations for e in engines)
        assert use.prompt_tokens == sum(e.prompt_tokens for e in engines)
        assert use.output_tokens == sum(e.output_tokens for e in engines)
        peak = max(e.peak_blocks / e.kv_blocks for e in engines)
        assert use.kv_peak >= peak if use.role == "prefill" else use.kv_peak == peak
        assert use.busy_s * lanes == pytest.approx(sum(e.busy_s for e in engines), rel=1e-9)
        assert use.prefill_busy_s * lanes == pytest.approx(
            sum(e.prefill_busy_s for e in engines), rel=1e-9
        )


@given(scenarios())
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_leaping_equals_stepping(scenario):
    assert_equal(*scenario)
