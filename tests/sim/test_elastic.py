from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.sim.elastic import Decision, Limits, View, simulate_elastic
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.iteration import timing_model
from gpusched.traces.generate import generate

TIMING = timing_model(
    load_model("llama-3.1-8b"), load_gpu("h100_sxm"), Parallelism(1),
    weights_dtype="bf16", kv_cache_dtype="bf16",
).compile(8192, 1024)  # fmt: skip
FLEET = Fleet((Pool("a", TIMING, 4000, max_num_seqs=16),))
TRACE = generate("chat", 20.0, 400.0, seed=1)


@dataclass
class Script:
    """Does what a list says, one entry a period."""

    targets: list[int]
    views: list[View] = field(default_factory=list)

    def decide(self, view: View) -> Decision:
        self.views.append(view)
        target = self.targets[min(len(self.views) - 1, len(self.targets) - 1)]
        return Decision(target, f"wants {target}")


@dataclass
class Release:
    each: int

    def release(self, view: View) -> int:
        return self.each


def test_a_constant_fleet_is_the_plain_simulation() -> None:
    for count in (1, 3):
        elastic = simulate_elastic(FLEET, TRACE, Script([count]), Limits(60, count, 6))
        plain = simulate(replace(FLEET, pools=(replace(FLEET.pools[0], replicas=count),)), TRACE)
        assert np.array_equal(elastic.result.first_token_s, plain.first_token_s)
        assert np.array_equal(elastic.result.finish_s, plain.finish_s)
        assert elastic.end_s == 60 * np.ceil(TRACE.arrival_s[-1] / 60)
        assert elastic.instance_s == pytest.approx(count * elastic.end_s)
        assert elastic.wasted_s == elastic.starts == 0


def test_a_started_instance_serves_after_its_start_up_and_is_paid_from_the_command() -> None:
    found = simulate_elastic(
        FLEET, TRACE, Script([1, 1, 3]), Limits(95.0, 1, 3, period_s=30.0), seed=2
    )
    new = found.result.replica > 0
    assert found.result.admitted_s[new].min() >= 60.0 + 95.0
    assert found.result.admitted_s[new].min() < 60.0 + 96.0
    assert found.wasted_s == pytest.approx(2 * 120.0)  # seen to have started at the next look
    assert found.starts == 2


def test_a_drained_instance_answers_what_it_has_and_takes_no_more() -> None:
    script = Script([2, 2, 2, 1])
    found = simulate_elastic(FLEET, TRACE, script, Limits(10, 2, 2, period_s=20.0))
    gone = found.result.arrival_s > 60.0
    assert len(np.unique(found.result.replica[gone])) == 1
    assert np.isfinite(found.result.finish_s).all()
    assert found.wasted_s == 20.0
    assert found.instance_s == pytest.approx(80.0 + found.end_s)


@given(targets=st.lists(st.integers(0, 7), min_size=1, max_size=30), seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_every_request_is_answered_and_time_adds_up(targets: list[int], seed: int) -> None:
    limits = Limits(45.0, 2, 5, 1, 15.0, warm=2, warm_startup_s=10.0)
    found = simulate_elastic(FLEET, TRACE, Script(targets), limits, seed=seed)
    assert np.isfinite(found.result.finish_s).all()
    assert (found.result.first_token_s > found.result.arrival_s).all()
    assert (found.open >= 1).all()
    assert (found.open + found.starting + found.draining <= limits.most).all()
    assert found.wasted_s <= found.instance_s
    end_s = found.end_s
    assert limits.least * end_s <= found.instance_s <= limits.most * end_s
    assert found.spot_s <= limits.warm * end_s


def test_deferred_requests_wait_until_they_are_let_in_first_due_first() -> None:
    late = np.arange(len(TRACE)) % 4 == 0
    due_s = np.where(late, 1000.0 - TRACE.arrival_s, np.nan)
    script = Script([3])
    found = simulate_elastic(
        FLEET, TRACE, script, Limits(10, 3, 3, period_s=10.0), due_s=due_s, release=Release(5)
    )
    assert np.isfinite(found.result.finish_s).all()
    assert np.array_equal(found.result.arrival_s, TRACE.arrival_s)
    held = [len(view.due_s) for view in script.views]
    assert max(held) > 300
    assert found.left.sum() >= held[-1] - 5
    assert not found.left[~late].any()
    assert all((np.diff(view.due_s) >= 0).all() for view in script.views)
    before = found.result.admitted_s[late] < TRACE.arrival_s[-1] - 10.0
    assert before.sum() <= 5 * (len(script.views))
    alone = simulate(
        replace(FLEET, pools=(replace(FLEET.pools[0], replicas=3),)),
        TRACE.take(np.flatnonzero(~late)),
    )
    assert np.median(found.result.ttft_s[~late]) < 2 * np.median(alone.ttft_s) + 0.1


def test_late_first_tokens_are_seen() -> None:
    busy = TRACE.scale_rate(6.0)
    script = Script([1])
    simulate_elastic(
        FLEET, busy, script, Limits(10, 1, 1, period_s=10.0), ttft_s=np.full(len(busy), 0.5)
    )
    assert script.views[0].late == 0
    assert max(view.late for view in script.views) > 0.9
    assert max(view.queue_wait_s for view in script.views) > 5
    assert max(view.use for view in script.views) > 1


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="least <= initial <= most"):
        Limits(10, 5, 3)
    with pytest.raises(InputError, match="period_s"):
        Limits(10, 1, 3, period_s=0)
    pools = (FLEET.pools[0], replace(FLEET.pools[0], name="b"))
    with pytest.raises(InputError, match="one pool"):
        simulate_elastic(replace(FLEET, pools=pools), TRACE, Script([1]), Limits(1, 1, 1))
    with pytest.raises(InputError, match="rule"):
        simulate_elastic(FLEET, TRACE, Script([1]), Limits(1, 1, 1), due_s=np.full(len(TRACE), 9.0))
