"""The model of a lockstep decode pool against a step-by-step reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.sim.theory.decode_pool import ROUTINGS, LockstepUnits, run_lockstep

POOL = LockstepUnits(3, 0.03, 0.004, 1e-5)


def reference(pool, arrivals, prompts, outputs, placed):
    now, came, live = arrivals[0], 0, []
    spans, batches, peaks, spreads = [], [], [], []
    while came < len(arrivals):
        if not live:
            now = max(now, arrivals[came])
        while came < len(arrivals) and arrivals[came] <= now:
            live.append([placed[came], prompts[came], outputs[came]])
            came += 1
        batch = np.bincount([u for u, _, _ in live], minlength=pool.units)
        kv = np.bincount([u for u, _, _ in live], [k for _, k, _ in live], pool.units)
        span = pool.fixed_s + pool.request_s * batch.max() + pool.kv_token_s * kv.max()
        now += span
        spans.append(span)
        batches.append(batch.mean())
        peaks.append(kv.max() / kv.mean())
        spreads.append(kv.std() / kv.mean())
        live = [[u, k + 1, left - 1] for u, k, left in live if left > 1]
    weigh = np.array(spans) / sum(spans)
    return len(spans), np.mean(spans), weigh @ batches, weigh @ peaks, weigh @ spreads


@given(
    st.lists(
        st.tuples(st.floats(0.0, 0.2), st.integers(1, 3000), st.integers(1, 30)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([*ROUTINGS, "lexicographic"]),
)
@settings(max_examples=60)
def test_agrees_with_a_step_by_step_reference(requests, placement):
    gaps, prompts, outputs = (np.array(column) for column in zip(*requests, strict=True))
    arrivals = np.cumsum(gaps)
    run = run_lockstep(POOL, arrivals, prompts, outputs, placement)
    steps, mean_s, batch, peak, spread = reference(POOL, arrivals, prompts, outputs, run.placed)
    assert run.steps == steps
    assert run.mean_step_s == pytest.approx(mean_s)
    assert run.batch == pytest.approx(batch)
    assert run.kv_peak == pytest.approx(peak)
    assert run.kv_variation == pytest.approx(spread)


def test_a_round_is_placed_longest_first():
    run = run_lockstep(LockstepUnits(2, 0.1, 0.0, 0.0), [0.0] * 4, [10, 90, 20, 100], [9] * 4)
    assert run.placed.tolist() == [0, 1, 1, 0]


def test_bad_input():
    with pytest.raises(InputError, match="ascend"):
        run_lockstep(POOL, [1.0, 0.0], [1, 1], [1, 1])
    with pytest.raises(InputError, match="at least one token"):
        run_lockstep(POOL, [0.0], [1], [0])
    with pytest.raises(InputError, match="unknown placement"):
        run_lockstep(POOL, [0.0], [1], [1], "lexicografic")
    with pytest.raises(InputError, match="positive fixed_s"):
        LockstepUnits(1, 0.0, 0.1, 0.1)
