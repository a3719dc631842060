"""The fluid plan: worked instances, properties, degenerate cases."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.policies.admission.fluid import (
    ServiceTerms,
    demand,
    fluid_plan,
    mean_tpot_s,
    violations,
)
from gpusched.policies.admission.service import Prices, RequestClass, ServerModel
from gpusched.timing.compiled import CompiledTiming

SERVER = ServerModel(16, 256, 0.0174, 6.2e-5, 0.022)
PRICES = Prices(0.1, 0.2)


def two_classes(first=0.5, second=0.5, abandonment=0.1):
    return (
        RequestClass("short", first, 300, 1000, abandonment),
        RequestClass("long", second, 3000, 400, abandonment),
    )


def one_class(rate):
    return (RequestClass("short", rate, 300, 1000, 0.1),)


def value(**options):
    classes = options.pop("classes", two_classes())
    return fluid_plan(classes, options.pop("server", SERVER), PRICES, **options).value


def test_service_times_of_the_base_instance():
    short, long = two_classes()
    assert pytest.approx(0.033272) == SERVER.mixed_s
    assert [1 / SERVER.prefill_s(c) for c in (short, long)] == pytest.approx([25.64719, 2.564719])
    assert [1 / SERVER.mixed_decode_s(c) for c in (short, long)] == pytest.approx(
        [0.0300553, 0.0751383], rel=1e-5
    )
    assert [1 / SERVER.solo_decode_s(c) for c in (short, long)] == pytest.approx(
        [0.0454545, 0.1136364], rel=1e-5
    )
    engine = replace(SERVER, whole_chunks=True)
    assert SERVER.prefill_s(short) / engine.prefill_s(short) == pytest.approx(300 / 512)


def test_base_instance_bundled():
    plan = fluid_plan(two_classes(), SERVER, PRICES)
    assert plan.value == pytest.approx(297.71619, rel=1e-7)
    assert plan.revenue == pytest.approx(plan.value)
    assert plan.prefills == pytest.approx([0.018261, 0.194953], rel=1e-4)
    assert plan.mixed_decodes.sum() == pytest.approx(3.198205, rel=1e-6)
    assert plan.solo_decodes.sum() == pytest.approx(12.588582, rel=1e-6)
    assert plan.prefill_queue == pytest.approx([0.316687, 0], abs=1e-6)
    assert plan.decode_queue == pytest.approx([0, 0], abs=1e-9)
    assert [plan.mixed_servers(n) for n in (5, 20, 50, 200, 500)] == [2, 5, 11, 43, 107]
    assert plan.shadow_prices["prefill"] == pytest.approx(0, abs=1e-9)
    assert plan.shadow_prices["mixed decode"] == pytest.approx(6.839, rel=1e-4)
    assert plan.shadow_prices["solo decode"] == pytest.approx(10.34306, rel=1e-6)
    assert plan.binding == ("solo decode", "mixed decode")
    assert plan.metered.tolist() == [True, False]
    assert plan.shed_share == pytest.approx([0.0633, 0], abs=1e-4)
    # dual value: capacities and arrivals, each times its price
    long_worth = plan.shadow_prices["arrivals of long"]
    assert 16 * plan.shadow_prices["solo decode"] + 0.5 * long_worth == pytest.approx(plan.value)
    told = " ".join(plan.explain())
    assert "solo decode binds" in told
    assert "class short: 6.3% get no answer" in told


def test_base_instance_separate():
    plan = fluid_plan(two_classes(), SERVER, PRICES, charging="separate")
    assert plan.value == pytest.approx(298.597983, rel=1e-7)
    assert plan.prefills == pytest.approx([0.019495, 0.194953], rel=1e-4)
    assert plan.mixed_decodes.sum() == pytest.approx(3.216727, rel=1e-6)
    assert plan.solo_decodes.sum() == pytest.approx(12.568825, rel=1e-6)
    assert plan.prefill_queue == pytest.approx([0, 0], abs=1e-9)
    # tokens that wait are worth the same in either class
    assert plan.decode_queue @ [1000, 400] == pytest.approx(0.800252 * 400, rel=1e-5)
    assert [plan.mixed_servers(n) for n in (5, 20, 50, 200, 500)] == [2, 5, 11, 43, 108]
    without_queue = fluid_plan(
        two_classes(), SERVER, PRICES, charging="separate", decode_queue=False
    )
    assert without_queue.value == pytest.approx(297.71619, rel=1e-7)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (ServiceTerms(prefill_gap=0.05), 182.7297),
        (ServiceTerms(prefill_gap=0.1), 231.4593),
        (ServiceTerms(prefill_gap=0.2), 297.7162),
        (ServiceTerms(decode_gap=0.5), 262.7204),
        (ServiceTerms(decode_gap=1), 268.0412),
        (ServiceTerms(decode_gap=2), 278.6828),
        (ServiceTerms(decode_gap=4), 297.7162),
        (ServiceTerms(tpot_s=0.022), 0.0),
        (ServiceTerms(tpot_s=0.0225), 141.9768),
        (ServiceTerms(tpot_s=0.023), 187.6833),
        (ServiceTerms(tpot_s=0.025), 297.7162),
    ],
)
def test_limits(limits, expected):
    plan = fluid_plan(two_classes(), SERVER, PRICES, limits=limits)
    assert plan.value == pytest.approx(expected, abs=1e-3)
    assert violations(plan, limits) == []


@pytest.mark.parametrize(
    ("streams", "expected"),
    [(2, 81.5276), (4, 158.5615), (8, 220.5821), (16, 297.7162), (32, 305.0)],
)
def test_streams(streams, expected):
    assert value(server=replace(SERVER, streams=streams)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("rates", "expected", "prefills", "mixed", "solo", "queue", "asked"),
    [
        ((1, 1), 429.9434, (0.008467, 0.389906), 5.9756, 9.626, (7.8285, 0), 610),
        ((0.5, 1), 429.9434, (0.008467, 0.389906), 5.9756, 9.626, (2.8285, 0), 495),
        ((2, 0.5), 297.7162, (0.018261, 0.194953), 3.1982, 12.5886, (15.3167, 0), 650),
        ((2, 2), 544.2512, (0, 0.558439), 8.3766, 7.06497, (20, 5.6776), 1220),
    ],
)
def test_other_rates(rates, expected, prefills, mixed, solo, queue, asked):
    classes = two_classes(*rates)
    plan = fluid_plan(classes, SERVER, PRICES)
    assert plan.value == pytest.approx(expected, rel=1e-6)
    assert plan.prefills == pytest.approx(prefills, abs=1e-6)
    assert plan.mixed_decodes.sum() == pytest.approx(mixed, rel=1e-4)
    assert plan.solo_decodes.sum() == pytest.approx(solo, rel=1e-4)
    assert plan.prefill_queue == pytest.approx(queue, abs=1e-4)
    assert demand(classes, PRICES) == pytest.approx(asked)
    assert violations(plan) == []


def test_underload_serves_all_without_mixed_decodes():
    plan = fluid_plan(two_classes(0.01, 0.01), SERVER, PRICES)
    assert plan.value == pytest.approx(6.1)
    assert plan.prefills == pytest.approx([0.00039, 0.003899], rel=1e-3)
    assert plan.solo_decodes == pytest.approx([0.22, 0.088])
    assert plan.mixed_decodes == pytest.approx([0, 0], abs=1e-9)
    assert plan.shed_share == pytest.approx([0, 0], abs=1e-9)
    assert plan.to_solo == pytest.approx([1, 1])
    assert plan.binding == ()


def test_single_class_and_its_closed_form():
    assert value(classes=one_class(0.5)) == pytest.approx(115.0)
    plan = fluid_plan(one_class(10), SERVER, PRICES)
    b, mu_p = 16, 1 / SERVER.prefill_s(plan.classes[0])
    x = b / 0.022 / (mu_p * 1000 - (b - 1) / SERVER.mixed_s + b / 0.022)
    assert x == pytest.approx(0.028054, rel=1e-4)
    assert plan.prefills[0] == pytest.approx(x)
    assert plan.value == pytest.approx(PRICES.of(plan.classes[0]) * mu_p * x)
    assert plan.value == pytest.approx(165.488972, rel=1e-8)
    assert plan.mixed_decodes[0] == pytest.approx(0.420816, rel=1e-5)
    assert plan.solo_decodes[0] == pytest.approx(15.551129, rel=1e-6)
    assert plan.prefill_queue[0] == pytest.approx(92.804827, rel=1e-6)


def test_patient_requests_are_turned_away_instead():
    plan = fluid_plan(two_classes(1, 1, abandonment=0.0), SERVER, PRICES)
    assert plan.value == pytest.approx(429.9434, rel=1e-6)
    assert plan.rejected_rps == pytest.approx([0.78285, 0], abs=1e-4)
    assert not plan.prefill_queue.any()
    assert violations(plan) == []


@pytest.mark.parametrize(
    "penalties",
    [
        ServiceTerms(prefill_gap=100),
        ServiceTerms(prefill_gap=1000),
        ServiceTerms(decode_gap=5),
        ServiceTerms(decode_gap=50),
    ],
)
def test_a_gap_penalty_is_the_best_limit_less_its_price(penalties):
    plan = fluid_plan(two_classes(), SERVER, PRICES, penalties=penalties)
    if penalties.prefill_gap is not None:
        price, best = (
            penalties.prefill_gap,
            [
                value(limits=ServiceTerms(prefill_gap=g)) - penalties.prefill_gap * g
                for g in np.linspace(0, 0.25, 101)
            ],
        )
        gap = np.ptp(plan.prefills)
    else:
        price, best = (
            penalties.decode_gap,
            [
                value(limits=ServiceTerms(decode_gap=g)) - penalties.decode_gap * g
                for g in np.linspace(0, 6, 101)
            ],
        )
        gap = np.ptp(plan.solo_decodes)
    assert plan.value >= max(best) - 1e-6
    assert plan.value == pytest.approx(max(best), rel=2e-3)
    assert plan.revenue - price * gap == pytest.approx(plan.value, rel=1e-6)


@pytest.mark.parametrize("penalty", [1e4, 6e4, 1e5, 1e6])
def test_a_tpot_penalty_is_the_best_mixed_share(penalty):
    plan = fluid_plan(two_classes(), SERVER, PRICES, penalties=ServiceTerms(tpot_s=penalty))
    swept = []
    for tpot_s in np.linspace(0.022, 0.0245, 51):
        limited = fluid_plan(two_classes(), SERVER, PRICES, limits=ServiceTerms(tpot_s=tpot_s))
        swept.append(limited.value - penalty * limited.mean_tpot_s)
    assert plan.value >= max(swept) - 1e-6 * penalty
    assert plan.value == pytest.approx(plan.revenue - penalty * plan.mean_tpot_s, rel=1e-6)
    assert plan.value == pytest.approx(max(swept), rel=2e-2)


def test_prices_of_limits_are_slopes():
    for limits, more in (
        (ServiceTerms(prefill_gap=0.1), ServiceTerms(prefill_gap=0.101)),
        (ServiceTerms(decode_gap=1), ServiceTerms(decode_gap=1.01)),
        (ServiceTerms(tpot_s=0.023), ServiceTerms(tpot_s=0.02301)),
    ):
        plan = fluid_plan(two_classes(), SERVER, PRICES, limits=limits)
        (name,) = (n for n in plan.shadow_prices if "gap" in n or n == "tpot")
        field = "tpot_s" if name == "tpot" else name.replace(" ", "_")
        step = getattr(more, field) - getattr(limits, field)
        slope = (value(limits=more) - plan.value) / step
        assert plan.shadow_prices[name] == pytest.approx(slope, rel=1e-3)
        assert name in plan.binding


@st.composite
def instances(draw, fewest=1):
    number = st.floats(0.05, 3.0)
    tokens = st.integers(50, 4000)
    classes = tuple(
        RequestClass(str(i), draw(number), draw(tokens), draw(tokens), draw(st.floats(0.01, 1.0)))
        for i in range(draw(st.integers(fewest, 5)))
    )
    solo_s = draw(st.floats(0.01, 0.05))
    server = ServerModel(
        draw(st.integers(1, 40)),
        draw(st.integers(64, 1024)),
        solo_s * draw(st.floats(0.5, 1.5)),
        draw(st.floats(1e-6, 1e-3)),
        solo_s,
    )
    return classes, server


@given(instances(), st.sampled_from(["bundled", "separate"]))
@settings(max_examples=60)
def test_plans_are_feasible_and_bounded_by_demand(instance, charging):
    classes, server = instance
    plan = fluid_plan(classes, server, PRICES, charging=charging)
    assert violations(plan) == []
    assert plan.value <= demand(classes, PRICES) * (1 + 1e-6)
    assert plan.revenue == pytest.approx(plan.value, rel=1e-6)
    served = (1 - plan.shed_share) * [c.rate_rps for c in classes]
    if charging == "bundled":
        assert float(served @ [PRICES.of(c) for c in classes]) == pytest.approx(
            plan.value, rel=1e-5
        )
    assert 0 <= plan.mixed_servers(7) <= 7
    assert ((plan.to_solo >= -1e-9) & (plan.to_solo <= 1 + 1e-9)).all()


@given(instances())
@settings(max_examples=60)
def test_value_moves_the_right_way(instance):
    classes, server = instance
    base = value(classes=classes, server=server)
    slack = 1e-6 * max(base, 1.0)
    more = tuple(replace(c, rate_rps=c.rate_rps * 1.3) for c in classes)
    assert value(classes=more, server=server) >= base - slack
    assert (
        value(classes=classes, server=replace(server, streams=server.streams + 1)) >= base - slack
    )
    assert (
        value(classes=classes, server=replace(server, solo_s=server.solo_s * 0.8)) >= base - slack
    )
    assert (
        value(classes=classes, server=replace(server, token_s=server.token_s * 1.5)) <= base + slack
    )
    fixed = replace(server, mixed_fixed_s=server.mixed_fixed_s * 1.5)
    assert value(classes=classes, server=fixed) <= base + slack
    dear = fluid_plan(classes, server, Prices(0.3, 0.6)).value
    assert dear == pytest.approx(3 * base, rel=1e-6)


@given(instances())
@settings(max_examples=60)
def test_bundled_plans_need_no_decode_queue(instance):
    """Where solo decoding is at least as productive as mixed decoding."""
    classes, server = instance
    if server.mixed_s * server.streams < (server.streams - 1) * server.solo_s:
        server = replace(server, mixed_fixed_s=server.solo_s)
    base = value(classes=classes, server=server)
    assert value(classes=classes, server=server, decode_queue=False) == pytest.approx(
        base, rel=1e-6, abs=1e-9
    )
    separate = fluid_plan(classes, server, PRICES, charging="separate", decode_queue=False)
    assert separate.value == pytest.approx(base, rel=1e-6, abs=1e-9)


def test_mixed_decodes_faster_than_solo_ones():
    odd = replace(SERVER, solo_s=0.1)
    plan = fluid_plan(two_classes(1, 1), odd, PRICES)
    assert violations(plan) == []
    # decodes are then best beside prefills, which costs prefills nothing
    assert plan.mixed_share > fluid_plan(two_classes(1, 1), SERVER, PRICES).mixed_share
    with pytest.raises(InputError, match="no faster"):
        fluid_plan(two_classes(), odd, PRICES, penalties=ServiceTerms(tpot_s=1))


def test_one_stream_means_no_decodes_beside_prefills():
    plan = fluid_plan(two_classes(), replace(SERVER, streams=1), PRICES)
    assert plan.mixed_decodes == pytest.approx([0, 0], abs=1e-9)
    assert plan.mean_tpot_s == 0.022
    assert violations(plan) == []


def test_mean_tpot_is_between_the_iterations():
    assert mean_tpot_s(SERVER, 0.0) == pytest.approx(0.022)
    assert mean_tpot_s(SERVER, 1.0) == pytest.approx(SERVER.mixed_s)
    assert 0.022 < mean_tpot_s(SERVER, 0.5) < SERVER.mixed_s


def test_violations_are_found():
    plan = fluid_plan(two_classes(), SERVER, PRICES)
    crowded = violations(replace(plan, solo_decodes=plan.solo_decodes * 1.1))
    assert any(line.startswith("solo decode") for line in crowded)
    assert any("prefilled" in line for line in crowded)
    assert "prefill gap" in violations(plan, ServiceTerms(prefill_gap=0.1))[0]
    assert "tpot" in violations(plan, ServiceTerms(tpot_s=0.023))[0]
    assert violations(replace(plan, prefill_queue=plan.prefill_queue - 1))


def linear_timing():
    """Iterations of 10 ms, 10 µs a token and 10 ns a token of context."""
    tokens = 1e-5 * np.arange(8193) + 1e-2
    return CompiledTiming(tokens, tokens[:1025], np.zeros(1025), 1e-8, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


def test_server_of_a_timing_model():
    classes = (RequestClass("a", 1.0, 1000, 200),)
    server = ServerModel.of_timing(linear_timing(), classes, 22_000, chunk_tokens=256)
    assert server.streams == 20
    assert server.whole_chunks
    context_s = 1e-8 * 1100
    assert server.mixed_s == pytest.approx(1e-2 + 1e-5 * (256 + 19) + 19 * context_s)
    assert server.token_s == pytest.approx(1e-5)
    assert server.solo_s == pytest.approx(1e-2 + 1e-5 * 20 + 20 * context_s)
    assert ServerModel.of_timing(linear_timing(), classes, 1e9, max_num_seqs=64).streams == 64
    assert server.prefill_s(classes[0]) == pytest.approx(4 * server.mixed_s)


def test_bad_input():
    with pytest.raises(InputError, match="rate_rps must be at least 0"):
        RequestClass("a", -1, 10, 10)
    with pytest.raises(InputError, match="prompt_tokens must be above 0"):
        RequestClass("a", 1, 0, 10)
    with pytest.raises(InputError, match="distinct names"):
        fluid_plan((*one_class(1), *one_class(2)), SERVER, PRICES)
    with pytest.raises(InputError, match="bundled or separate"):
        fluid_plan(one_class(1), SERVER, PRICES, charging="free")
    with pytest.raises(InputError, match="at least 1 stream"):
        replace(SERVER, streams=0)
    with pytest.raises(InputError, match="prices"):
        Prices(-1, 0)
    with pytest.raises(InputError, match="tpot_s must be"):
        ServiceTerms(tpot_s=-1)
    with pytest.raises(InputError, match="holds no request"):
        ServerModel.of_timing(linear_timing(), one_class(1), 100)
    with pytest.raises(InputError, match="must arrive"):
        ServerModel.of_timing(linear_timing(), one_class(0), 1e6)
    with pytest.raises(InfeasibleError, match="fastest iteration"):
        fluid_plan(one_class(1), SERVER, PRICES, limits=ServiceTerms(tpot_s=0.02))
