"""Groups set anew during a simulation: equal to the reference, close to foresight, not foresight."""

import numpy as np
import pytest
from fleets import timing, trace
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel import assert_equal

from gpusched.policies.batching import estimation
from gpusched.sim import reestimation
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import ClosedLoop, simulate
from gpusched.traces.trace import Trace

LEARNING = [
    "wait+predictor=noisy:0.5+segments=6+reestimate_s=0.3",
    "wait+start=strict+reestimate_s=0.7",
    "nested-wait+segments=6+reestimate_s=0.3",
    "nested-wait+segments=3+cap=12+reestimate_s=0.5",
]


@pytest.fixture
def settings_made(monkeypatch):
    """Count how often groups are set anew, with few answers needed for it."""
    made = []
    monkeypatch.setattr(estimation, "ENOUGH", 4)
    write = reestimation.set_groups

    def note(s, first, last, groups):
        made.append(groups)
        write(s, first, last, groups)

    monkeypatch.setattr(reestimation, "set_groups", note)
    return made


@pytest.mark.parametrize("batching", LEARNING)
@pytest.mark.parametrize("seed", range(3))
def test_leaping_equals_stepping_while_groups_change(batching, seed, settings_made):
    rng = np.random.default_rng(seed)
    pools = [
        Pool("a", timing(90 if seed == 1 else 0), int(rng.choice([60, 150, 400])),
             replicas=1 + seed % 2, batching=batching, max_num_seqs=20,
             max_num_batched_tokens=256)
    ]  # fmt: skip
    if seed == 2:
        pools.append(
            Pool("b", timing(), 200, batching="nested-wait+reestimate_s=1.1", max_num_seqs=20)
        )
    requests = trace(
        150, float(rng.choice([5, 15, 40])), seed, max_output=int(rng.choice([60, 150, 400])),
        sessions=seed == 1,
    )  # fmt: skip
    loop = ClosedLoop(9, 0.05) if seed == 0 else None
    assert_equal(Fleet(tuple(pools)), requests, loop, seed)
    assert settings_made


def chat(n, rate, seed=0):
    rng = np.random.default_rng(seed)
    return Trace(
        np.cumsum(rng.exponential(1 / rate, n)),
        rng.integers(50, 400, n).astype(np.int32),
        np.minimum(rng.geometric(0.02, n), 250).astype(np.int32),
    )


def engine(batching, **settings):
    return Fleet((Pool("one", timing(), 2000, batching=batching, max_num_seqs=64, **settings),))


@pytest.mark.parametrize("name", ["wait+predictor=oracle", "nested-wait"])
def test_learned_thresholds_serve_as_well_as_foreseen_ones(name):
    requests = chat(4000, 18.0)
    learned = simulate(engine(name + "+reestimate_s=10"), requests)
    foreseen = simulate(engine(name + "+reestimate_s=0"), requests)
    later = slice(1000, None)
    assert learned.e2e_s[later].mean() == pytest.approx(foreseen.e2e_s[later].mean(), rel=0.05)
    assert np.isfinite(learned.finish_s).all()


def test_thresholds_follow_a_step_of_the_rate(settings_made):
    slow, fast = chat(1200, 4.0), chat(3000, 13.0, seed=1)
    both = Trace(
        np.concatenate((slow.arrival_s, slow.arrival_s[-1] + fast.arrival_s)),
        np.concatenate((slow.prompt_tokens, fast.prompt_tokens)),
        np.concatenate((slow.output_tokens, fast.output_tokens)),
    )
    slow_engine = timing(scale=8.0)
    pool = Pool(
        "one", slow_engine, 2000, batching="nested-wait+segments=1+reestimate_s=10",
        max_num_seqs=64, max_num_batched_tokens=1024,
    )  # fmt: skip
    simulate(Fleet((pool,)), both)
    first = [int(groups.thresholds[0]) for groups in settings_made]
    assert first[0] == 1
    assert max(first) >= 2


def test_an_unstable_load_is_told_with_the_bound():
    result = simulate(engine("nested-wait+reestimate_s=10"), chat(4000, 200.0))
    assert len(result.notes) == 1
    assert "requests/s an engine are unstable, at most" in result.notes[0]
    assert simulate(engine("nested-wait+reestimate_s=10"), chat(1000, 10.0)).notes == ()


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_nothing_is_known_of_the_future(seed):
    """Lengths and arrivals later than an answer's end leave everything up to it as it was."""
    now = chat(400, 20.0, seed)
    later = chat(400, 60.0, seed + 1)
    rows = 200
    longest = int(now.output_tokens[:rows].max())
    other = Trace(
        np.concatenate((now.arrival_s[:rows], now.arrival_s[rows - 1] + later.arrival_s)),
        np.concatenate((now.prompt_tokens[:rows], later.prompt_tokens)),
        np.concatenate((now.output_tokens[:rows], later.output_tokens)),
    )
    assert longest > 0
    fleet = engine("nested-wait+reestimate_s=2")
    ours, theirs = simulate(fleet, now), simulate(fleet, other)
    same = min(now.arrival_s[rows], other.arrival_s[rows])
    done = ours.finish_s[:rows] < same
    assert done.any()
    assert (ours.finish_s[:rows][done] == theirs.finish_s[:rows][done]).all()
