"""The model of gated engines: theory of waiting, invariants, and a step-by-step reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.sim.theory.gated import ROUTINGS, GatedEngines, run_gated

T = 0.3


def uniform(n, span_s, seed=0):
    return np.sort(np.random.default_rng(seed).random(n)) * span_s


def mean_wait_s(engines, dispatch, in_phase=False, n=200_000):
    fleet = GatedEngines(
        engines, 1, 10**9, T, never_idle=True, first_gate_s=(0.0,) * engines if in_phase else None
    )
    run = run_gated(
        fleet, uniform(n, n * 0.01), np.ones(n, int), dispatch, lowest_interval_s=0.0
    )  # fmt: skip
    return run.wait_s.mean()


@pytest.mark.parametrize("engines", [1, 2, 4, 8])
def test_staggered_gates_divide_the_wait_by_the_engines(engines):
    assert mean_wait_s(engines, "random") == pytest.approx(T / 2, rel=0.01)
    assert mean_wait_s(engines, "staggered") == pytest.approx(T / (2 * engines), rel=0.01)


def test_it_is_the_stagger_that_does_it():
    assert mean_wait_s(4, "staggered", in_phase=True) == pytest.approx(T / 2, rel=0.01)


def test_idle_engines_make_immediate_dispatch_wait_less():
    n = 50_000
    arrivals = uniform(n, n * 1.0)
    ones = np.ones(n, int)
    busy = GatedEngines(4, 1, 10**9, T, never_idle=True)
    idle = GatedEngines(4, 1, 10**9, T)
    assert run_gated(busy, arrivals, ones, "random").wait_s.mean() == pytest.approx(T / 2, rel=0.02)
    at_once = run_gated(idle, arrivals, ones, "random").wait_s.mean()
    assert at_once < 0.2 * T / 2
    held = run_gated(idle, arrivals, ones, "staggered", shortcuts=False).wait_s.mean()
    shortcut = run_gated(idle, arrivals, ones, "staggered").wait_s.mean()
    assert shortcut < 0.01 * T
    assert held > 2 * shortcut


def test_at_light_load_staggering_is_immediate_dispatch():
    arrivals = np.arange(1000) * 1.0
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    fleet = GatedEngines(3, 2, 1000, 0.1, 1e-4)
    for dispatch in ("staggered", *ROUTINGS):
        run = run_gated(fleet, arrivals, lengths, dispatch)
        assert run.ttft_s == pytest.approx(0.1 + 1e-4 * lengths)
        assert run.wait_s == pytest.approx(0.0, abs=1e-9)


def test_a_giant_prompt_takes_several_passes():
    fleet = GatedEngines(2, 2, 1000, 0.1, 1e-4)
    run = run_gated(fleet, [0.0, 0.01], [5500, 800], "staggered")
    assert run.ttft_s == pytest.approx([6 * 0.1 + 5500e-4, 0.18])
    assert run.passes == 7
    assert run.tokens == 6300
    assert run.chunk_use == pytest.approx(6300 / 14000)
    assert run.level == pytest.approx(6300 / 12600)


def test_identical_requests_are_level():
    fleet = GatedEngines(1, 4, 1000, 0.1, 1e-4)
    run = run_gated(fleet, np.zeros(64), np.full(64, 100), "staggered", lowest_interval_s=0.0)
    assert run.level == 1.0
    assert run.variation == 0.0


def test_full_cache_hits_cost_a_pass_but_no_tokens():
    fleet = GatedEngines(1, 2, 1000, 0.1, 1e-4)
    run = run_gated(fleet, [0.0], [900], "staggered", cached_tokens=[[0, 900]])
    assert run.unit.tolist() == [1]
    assert run.ttft_s == pytest.approx([0.1])
    assert (run.tokens, run.passes) == (0, 1)


def test_network_delays_once():
    for dispatch in ("staggered", "random"):
        fleet = GatedEngines(2, 2, 1000, 0.1, 1e-4, network_s=0.02)
        run = run_gated(fleet, [1.0], [100], dispatch)
        assert run.ttft_s == pytest.approx([0.13])


def reference(arrivals, lengths, fleet, units):
    """Round-robin or any given assignment, a pass at a time, in plain Python."""
    ttft = [0.0] * len(arrivals)
    for e in range(fleet.engines):
        mine = [r for r in range(len(arrivals)) if units[r] // fleet.units == e]
        remaining = {r: lengths[r] for r in mine}
        now = 0.0
        while remaining:
            waiting = [r for r in remaining if arrivals[r] <= now]
            if not waiting:
                now = min(arrivals[r] for r in remaining)
                continue
            budget = dict.fromkeys(
                range(e * fleet.units, (e + 1) * fleet.units), fleet.chunk_tokens
            )
            finished = []
            for r in waiting:
                u = units[r]
                part = min(budget[u], remaining[r])
                first = all(units[q] != u for q in waiting[: waiting.index(r)] if remaining.get(q))
                if part == 0 and remaining[r] > 0 and not first:
                    continue
                budget[u] -= part
                remaining[r] -= part
                if remaining[r] == 0:
                    finished.append(r)
            busiest = fleet.chunk_tokens - min(budget.values())
            now += fleet.fixed_s + fleet.token_s * busiest
            for r in finished:
                ttft[r] = now - arrivals[r]
                del remaining[r]
    return ttft


gaps = st.floats(0.0, 0.3).map(lambda t: round(t, 4))


@given(
    st.lists(st.tuples(gaps, st.integers(1, 900)), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(ROUTINGS),
)
@settings(max_examples=60)
def test_immediate_dispatch_agrees_with_a_pass_by_pass_reference(
    requests, engines, units, dispatch
):
    arrivals = np.cumsum([gap for gap, _ in requests])
    lengths = [n for _, n in requests]
    fleet = GatedEngines(engines, units, 400, 0.1, 1e-3)
    run = run_gated(fleet, arrivals, lengths, dispatch)
    expected = reference(arrivals.tolist(), lengths, fleet, run.unit.tolist())
    assert run.ttft_s == pytest.approx(expected, abs=1e-9)


@given(
    st.lists(st.tuples(gaps, st.integers(0, 2000)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.002, 0.05]),
    st.sampled_from([0, 300, 10**9]),
    st.booleans(),
)
def test_invariants(requests, engines, units, lowest_s, spill, shortcuts):
    arrivals = np.cumsum([gap for gap, _ in requests])
    lengths = np.array([n for _, n in requests])
    fleet = GatedEngines(engines, units, 400, 0.1, 1e-3)
    run = run_gated(
        fleet, arrivals, lengths, lowest_interval_s=lowest_s, spill_tokens=spill,
        shortcuts=shortcuts,
    )  # fmt: skip
    assert run.tokens == lengths.sum()
    assert ((run.unit >= 0) & (run.unit < engines * units)).all()
    assert (run.wait_s >= -1e-12).all()
    least_s = np.ceil(np.maximum(lengths, 1) / 400) * 0.1 + 1e-3 * lengths
    assert (run.ttft_s - run.wait_s >= least_s - 1e-9).all()
    assert run.closest_release_s >= lowest_s - 1e-12
    assert run.busy_s <= engines * run.end_s + 1e-9
    assert 0.0 <= run.chunk_use <= 1.0
    assert 0.0 <= run.level <= 1.0


@pytest.mark.parametrize(
    ("arrivals", "tokens", "dispatch", "message"),
    [
        ([1.0, 0.0], [1, 1], "staggered", "ascend"),
        ([0.0], [-1], "staggered", "negative"),
        ([0.0], [1], "stagered", "did you mean staggered"),
    ],
)
def test_bad_input(arrivals, tokens, dispatch, message):
    with pytest.raises(InputError, match=message):
        run_gated(GatedEngines(1, 1, 100, 0.1), arrivals, tokens, dispatch)


def test_bad_engines():
    with pytest.raises(InputError, match="at least 1"):
        GatedEngines(0, 1, 100, 0.1)
    with pytest.raises(InputError, match="fixed_s must be positive"):
        GatedEngines(1, 1, 100, 0.0)
    with pytest.raises(InputError, match="2 entries"):
        GatedEngines(2, 1, 100, 0.1, first_gate_s=(0.0,))
    with pytest.raises(InputError, match="1 x 2"):
        run_gated(GatedEngines(1, 2, 100, 0.1), [0.0], [1], cached_tokens=[[1]])
