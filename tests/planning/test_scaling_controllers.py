from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.capacity.anticipating import Anticipating
from gpusched.planning.capacity.batch_queue import BySignal, IntoValleys, rate_for_deadlines
from gpusched.planning.capacity.clairvoyant import cost_of, fluid_bound, keep_through_gaps
from gpusched.planning.capacity.plan_following import ByUtilisation, Immediate, InstancePlan
from gpusched.planning.capacity.reactive import PodAutoscaler, Threshold
from gpusched.planning.capacity.rolling_plan import Settings, rolling_plan
from gpusched.planning.capacity.service import Service
from gpusched.planning.forecast.models import forecaster
from gpusched.planning.forecast.rolling import rolling_forecast
from gpusched.sim.elastic import View

FLAT = Service(np.array([1, 2]), np.array([100.0, 200.0]))


def seen(**changes: object) -> View:
    values = {
        "now_s": 0.0, "open": 4, "starting": 0, "draining": 0, "kv_use": 0.5, "outstanding": 20,
        "seats": 40, "waiting": 0, "queue_wait_s": 0.0, "late": 0.0, "prompt_tokens": 20_000,
        "period_s": 60.0, "due_s": np.zeros(0),
    }  # fmt: skip
    return View(**{**values, **changes})  # type: ignore[arg-type]


def test_threshold_changes_one_at_a_time() -> None:
    rule = Threshold(0.7, 0.3)
    assert rule.decide(seen(kv_use=0.8)).target == 5
    assert rule.decide(seen(kv_use=0.8, starting=1)).target == 5
    assert rule.decide(seen(kv_use=0.1, outstanding=4)).target == 3
    assert rule.decide(seen(kv_use=0.1, outstanding=4, draining=1)).target == 4
    assert rule.decide(seen(kv_use=0.1, outstanding=0, open=1)).target == 1
    assert "between" in rule.decide(seen()).reason


def test_pod_autoscaler_goes_up_at_once_and_down_after_a_while() -> None:
    rule = PodAutoscaler("use", 0.5, 300.0)
    assert rule.decide(seen(kv_use=0.9)).target == 8
    assert rule.decide(seen(now_s=60.0, kv_use=0.2, outstanding=2)).target == 4
    later = [rule.decide(seen(now_s=60.0 * k, kv_use=0.2, outstanding=2)) for k in range(2, 8)]
    assert later[0].target == 4
    assert later[-1].target == 2
    assert PodAutoscaler("outstanding", 4.0).decide(seen(outstanding=23)).target == 6
    assert PodAutoscaler("use", 0.5).decide(seen(kv_use=0.52)).target == 4


def test_plan_following_spends_its_credit_as_utilisation_asks() -> None:
    plan = InstancePlan(np.array([0.0, 3600.0]), np.array([6, 2]), np.array([1000.0, 100.0]))
    assert Immediate(plan).decide(seen()).target == 6
    assert Immediate(plan).decide(seen(now_s=3600.0)).target == 2
    rule = ByUtilisation(plan, burst=5.0)
    assert rule.decide(seen()).target == 4
    assert rule.decide(seen(kv_use=0.8)).target == 5
    assert rule.decide(seen(kv_use=0.8, open=5)).target == 6
    assert rule.decide(seen(kv_use=0.8, open=6)).reason == "the plan is carried out"
    assert rule.decide(seen(kv_use=0.95, open=6)).target == 7
    assert rule.decide(seen(open=6, prompt_tokens=400_000)).target == 7
    assert ByUtilisation(plan).decide(seen(open=6, prompt_tokens=400_000)).target == 6
    assert rule.decide(seen(now_s=3600.0)).target == 4
    assert rule.decide(seen(now_s=3660.0, kv_use=0.1, outstanding=4)).target == 3


def test_without_bursts_lt_u_stays_within_its_plan() -> None:
    plan = InstancePlan(np.array([0.0]), np.array([6]), np.array([1.0]))
    rule, have = ByUtilisation(plan), 4
    for use in np.random.default_rng(0).uniform(0.2, 0.9, 200):
        have = rule.decide(seen(open=have, kv_use=float(use), outstanding=0)).target
        assert have <= 6


def test_anticipating_takes_the_largest_need_and_says_which() -> None:
    plan = InstancePlan(600.0 * np.arange(4), np.zeros(4, int), np.array([500.0, 300, 290, 280]))
    rule = Anticipating(plan, FLAT, recent=1)
    assert rule.decide(seen()).target == 5
    assert rule.decide(seen(now_s=600.0, prompt_tokens=60 * 750)).target == 8
    assert "tokens" in rule.decide(seen(now_s=600.0, prompt_tokens=60 * 750)).reason
    assert "fewer" in rule.decide(seen(now_s=660.0, open=9, prompt_tokens=60)).reason
    assert rule.decide(seen(now_s=660.0, open=9, late=0.8)).target == 10
    back = InstancePlan(600.0 * np.arange(3), np.zeros(3, int), np.array([300.0, 500.0, 500.0]))
    kept = Anticipating(back, FLAT).decide(seen(prompt_tokens=60))
    assert kept.target == 4
    assert "back before" in kept.reason


def test_lateness_raises_the_factor_and_its_absence_lowers_it() -> None:
    plan = InstancePlan(np.zeros(1), np.zeros(1, int), np.full(1, 400.0))
    rule = Anticipating(plan, FLAT, late_allowed=0.02, floor=0.9)
    for _ in range(100):
        rule.decide(seen(late=0.5))
    high = rule.factor
    assert high > 1.3
    for _ in range(5000):
        rule.decide(seen(late=0.0))
    assert rule.factor == 0.9


def test_deferred_requests_fill_what_is_left() -> None:
    due_s = np.arange(1000.0) + 1e5
    rule = IntoValleys(100.0, 50.0)
    assert rule.release(seen(due_s=due_s)) == int((0.95 * 100 * 4 * 60 - 20_000) / 50)
    assert rule.release(seen(due_s=due_s, waiting=3)) == 0
    assert rule.release(seen(due_s=due_s, now_s=1e5, waiting=3)) == len(due_s)
    assert BySignal().release(seen(due_s=due_s, kv_use=0.55)) == 4
    assert BySignal().release(seen(due_s=due_s, kv_use=0.3, outstanding=4)) == 8
    assert BySignal().release(seen(due_s=due_s, kv_use=0.65)) == 0


def test_rate_for_deadlines_is_the_demand_bound() -> None:
    due_s = np.array([100.0, 200.0, 1000.0])
    assert rate_for_deadlines(due_s, 0.0, 10.0, 0.0) == pytest.approx(10 / 100)
    assert rate_for_deadlines(np.array([200.0] * 5), 0.0, 10.0, 100.0) == pytest.approx(0.5)
    assert rate_for_deadlines(np.zeros(0), 0.0, 10.0, 0.0) == 0


@given(
    need=st.lists(st.integers(0, 2), min_size=2, max_size=6),
    start=st.sampled_from([0.0, 1.0, 2.0, 2.5]),
)
@settings(max_examples=60, deadline=None)
def test_keeping_through_gaps_is_optimal(need: list[int], start: float) -> None:
    held = keep_through_gaps(need, start)
    assert (held >= need).all()
    best = min(
        cost_of(choice, start)
        for choice in product(*(range(n, 3) for n in need))
    )  # fmt: skip
    assert cost_of(held, start) == pytest.approx(best)
    bound = fluid_bound(np.array(need) * 7.0, 7.0, start_steps=start)
    assert bound.instance_steps == pytest.approx(best, abs=1e-6)


def test_deferred_work_moves_into_valleys() -> None:
    load = np.array([10.0, 0.0, 10.0, 0.0])
    come, due = np.array([8.0, 0, 0, 0]), np.array([0.0, 0, 0, 8.0])
    found = fluid_bound(load, 1.0, arrived=come, due=due)
    assert found.instance_steps == pytest.approx(28.0)
    smooth = fluid_bound(load, 1.0, start_steps=5.0, arrived=come, due=due)
    assert smooth.deferred.sum() == pytest.approx(8.0)
    assert smooth.deferred[1] > 0
    with pytest.raises(InfeasibleError, match="due before"):
        fluid_bound(load, 1.0, arrived=due, due=come)


STEPS = 6 * 24 * 12
HOURS = np.arange(STEPS) / 6
DAILY = 400 + 300 * np.sin(2 * np.pi * HOURS / 24)


def test_rolling_forecasts_look_at_the_past_alone_and_cover() -> None:
    noisy = DAILY * np.random.default_rng(0).lognormal(0, 0.1, STEPS)
    model = forecaster("harmonic", 144)
    found = rolling_forecast(noisy, model, 3, first=576, every=2, level=0.9)
    assert found.coverage == pytest.approx(0.9, abs=0.05)
    changed = noisy.copy()
    changed[1000:] *= 3
    other = rolling_forecast(changed, model, 3, first=576, every=2, level=0.9)
    early = found.origin <= 1000
    assert np.array_equal(found.band[early], other.band[early])
    with pytest.raises(InputError, match="longer history"):
        rolling_forecast(noisy[:100], model, 3, first=576)


def test_rolling_plan_serves_what_it_plans_for() -> None:
    series = np.stack([DAILY, np.roll(DAILY, 36)])[None]
    found = rolling_plan(
        series, 600.0, [FLAT], forecaster("harmonic", 144), 576, Settings(local_share=0.5)
    )
    served = found.target[:, 0].sum(axis=1) * 100.0
    assert (served >= found.wanted_tps[:, 0].sum(axis=1) - 1e-6).all()
    assert found.sent.sum(axis=3) == pytest.approx(1.0)
    assert (found.sent >= 0).all()
    local = rolling_plan(series, 600.0, [FLAT], forecaster("harmonic", 144), 576, Settings())
    assert found.target.sum() <= local.target.sum()
    assert (local.sent == np.eye(2)).all()


def test_limits_that_are_too_low_name_the_nearest_that_do() -> None:
    series = np.stack([DAILY, DAILY])[None]
    model = forecaster("harmonic", 144)
    with pytest.raises(InfeasibleError, match=r"nearest limits that suffice.*: 10, 12 instances"):
        rolling_plan(series, 600.0, [FLAT], model, 576, Settings(most=np.array([5, 7])))
    enough = Settings(most=np.array([10, 12]))
    assert rolling_plan(series, 600.0, [FLAT], model, 576, enough).target.max() <= 12


def test_service_is_inverted() -> None:
    service = Service(np.array([1, 4, 16]), np.array([50.0, 320.0, 1600.0]))
    for demand in (0.0, 10.0, 49.0, 51.0, 700.0, 5000.0):
        number = service.needed(demand)
        assert number * service.each(number) >= demand
        assert number <= 1 or (number - 1) * service.each(number - 1) < demand
