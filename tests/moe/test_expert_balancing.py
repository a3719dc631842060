import numpy as np
import pytest

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.moe.balancing import Balancer, Eplb, Probe, balance
from gpusched.moe.expert_layer import ExpertLayer, distinct_ranks, expert_layer
from gpusched.moe.predictors import LastStep, MovingAverage, OfAccuracy, Oracle
from gpusched.moe.residual_router import ResidualRouter, choice_accuracy
from gpusched.moe.routing_traces import moving_hotspots, replayed_routes
from gpusched.timing.iteration import timing_model

LAYER = ExpertLayer(
    experts=32, ranks=4, token_s=1.0, expert_s=10.0, exchange_token_s=0.1, transfer_expert_s=100.0,
    attention_s=200.0, replica_slots=3,
)  # fmt: skip


def trace(**changes):
    settings = {"tokens_per_rank": 128, "top_k": 4, "hot_share": 0.3, "period": 10} | changes
    return moving_hotspots(60, 32, 4, **settings)


def test_better_knowledge_gives_more_even_loads():
    balancers = {
        "static": Balancer(LAYER),
        "oracle": Probe(LAYER, Oracle()),
        "right in 9 of 10": Probe(LAYER, OfAccuracy(0.9)),
        "right in half": Probe(LAYER, OfAccuracy(0.5)),
        "average": Probe(LAYER, MovingAverage(8)),
    }
    found = {result.name: result for result in balance(LAYER, trace(), balancers)}
    mean = {name: result.mean_imbalance for name, result in found.items()}
    assert mean["oracle"] < mean["right in 9 of 10"] < mean["right in half"] < mean["static"]
    assert mean["oracle"] < mean["average"] < mean["static"]
    assert found["oracle"].layer_s.mean() < found["static"].layer_s.mean()
    assert (found["oracle"].exposed_s == 0).all()
    assert (found["static"].replicas == 0).all()
    assert all((result.imbalance >= 1).all() for result in found.values())


def test_known_counts_split_anew_lose_nothing():
    planned, anew = balance(
        LAYER,
        trace(),
        {
            "planned": Probe(LAYER, LastStep()),
            "anew": Probe(LAYER, LastStep(), resplit=True),
        },
    )
    assert anew.layer_s.mean() < planned.layer_s.mean()


def test_statistics_that_come_too_late_are_no_better_than_nothing():
    moved = trace(period=1, concentration=50.0, hot_experts=2)
    static, eplb = balance(
        LAYER, moved, {"static": Balancer(LAYER), "eplb": Eplb(LAYER, window=1, interval=2)}
    )
    assert eplb.imbalance.mean() >= static.imbalance.mean() * 0.97
    steady = trace(period=1000, concentration=50.0, hot_experts=2)
    static, eplb, probe = balance(
        LAYER,
        steady,
        {
            "static": Balancer(LAYER),
            "eplb": Eplb(LAYER, window=10, interval=10),
            "probe": Probe(LAYER, LastStep()),
        },
    )
    assert eplb.imbalance[20:].mean() < static.imbalance[20:].mean()
    assert eplb.imbalance[20:].mean() == pytest.approx(probe.imbalance[20:].mean(), rel=0.15)


def test_a_trace_of_another_layer_is_named():
    with pytest.raises(InputError, match="trace: must have shape"):
        balance(LAYER, np.zeros((3, 4)), {})
    with pytest.raises(InputError, match=r"tokens: must have shape \(32, 4\)"):
        balance(LAYER, np.zeros((3, 8, 4)), {"static": Balancer(LAYER)})


def test_generated_counts():
    counts = trace()
    assert counts.shape == (60, 32, 4)
    assert (counts.sum(axis=1) == 512).all()
    assert (counts == trace()).all()
    hottest = counts.sum(axis=2).argmax(axis=1).reshape(6, 10)
    assert len({tuple(row) for row in hottest}) > 1
    for name in ("hot_share", "drift", "locality"):
        with pytest.raises(InputError, match=rf"{name}: must lie in \[0, 1\]"):
            trace(**{name: 1.5})
        with pytest.raises(InputError, match=name):
            trace(**{name: float("nan")})
    with pytest.raises(InputError, match="period"):
        trace(period=0)
    with pytest.raises(InputError, match="concentration"):
        trace(concentration=-1.0)


def test_predictors():
    counts = trace()[0]
    assert (OfAccuracy(1.0).predict(counts) == counts).all()
    noisy = OfAccuracy(0.6, seed=1).predict(counts)
    assert (noisy.sum(axis=0) == counts.sum(axis=0)).all()
    one = np.zeros((32, 4))
    one[7] = 100_000
    assert OfAccuracy(0.6).predict(one)[7] == pytest.approx(60_000, rel=0.02)
    assert LastStep().predict(counts) is None
    average = MovingAverage(2)
    for value in (1.0, 2.0, 4.0):
        average.observe(counts * value)
    assert average.predict(counts) == pytest.approx(counts * 3.0)
    with pytest.raises(InputError, match=r"accuracy: must lie in \[0, 1\]"):
        OfAccuracy(float("nan"))
    with pytest.raises(InputError, match="window"):
        MovingAverage(0)


def test_measured_routes_are_replayed(shared):
    path = shared / "data" / "moe" / "dsv2lite_token_routes.parquet"
    counts = replayed_routes(
        path, 5, 4, tokens_per_rank=32, steps=6, tasks=("law", "translation"), shift_at=3
    )
    assert counts.shape == (6, 64, 4)
    assert (counts.sum(axis=1) == 32 * 6).all()
    with pytest.raises(InputError, match="no rows of task 'poetry'"):
        replayed_routes(path, 5, 4, tokens_per_rank=1, steps=1, tasks=("poetry",))


def test_distinct_ranks_of_even_routing():
    for (experts, ranks, k), expected in {
        (128, 8, 8): 5.339, (128, 8, 4): 3.342, (256, 8, 8): 5.295, (256, 32, 8): 7.267,
    }.items():  # fmt: skip
        assert distinct_ranks(experts, ranks, k) == pytest.approx(expected, abs=5e-4)


def engine(**changes):
    parallelism = Parallelism(**({"tp": 1, "dp": 8, "ep": 8} | changes))
    return timing_model(load_model("gpt-oss-120b"), load_gpu("h200_sxm"), parallelism)


def test_layer_of_an_engine():
    layer = expert_layer(engine(), 1e-4)
    assert (layer.experts, layer.ranks) == (128, 8)
    assert layer.transfer_expert_s > layer.expert_s > layer.token_s > 0
    with pytest.raises(InputError, match="at least 2 ranks"):
        expert_layer(engine(dp=1, ep=1), 1e-4)


def test_engines_take_a_measured_imbalance():
    model = engine()
    even, skewed = model.at_imbalance(1.0), model.at_imbalance(2.0)
    n = np.array([4096.0])
    routed_even, routed = (m.experts_s(n)[0] for m in (even, skewed))
    fixed = model.model.moe_layers * model.coefficients.moe_fixed_s
    assert routed - fixed == pytest.approx(2.0 * (routed_even - fixed))
    assert skewed.decode_s(64, 1000) > even.decode_s(64, 1000)
    for wrong in (0.9, float("nan"), float("inf")):
        with pytest.raises(InputError, match="expert_imbalance: must be at least 1"):
            model.at_imbalance(wrong)
    with pytest.raises(InputError, match="no experts spread over ranks"):
        engine(dp=1, ep=1).at_imbalance(1.5)


def hidden_states(rng, tokens, hidden, mix):
    before = rng.normal(size=(tokens, hidden))
    return before, before + np.tanh(before @ mix) * 1.2


def test_the_residual_network_learns_what_the_frozen_router_misses():
    rng = np.random.default_rng(0)
    hidden, experts, top_k = 32, 16, 4
    router = rng.normal(size=(hidden, experts)) / 2
    mix = rng.normal(size=(hidden, hidden)) / hidden**0.5
    predictor = ResidualRouter(router, width=64, rate=5e-3)

    def accuracy():
        before, after = hidden_states(np.random.default_rng(9), 500, hidden, mix)
        actual = np.argsort(-(after @ router), axis=1)[:, :top_k]
        return choice_accuracy(predictor.choose(before, top_k), actual)

    before, _ = hidden_states(rng, 10, hidden, mix)
    assert predictor.logits(before) == pytest.approx(before @ router)
    frozen, losses = accuracy(), []
    for _ in range(200):
        before, after = hidden_states(rng, 256, hidden, mix)
        target = np.exp(after @ router)
        losses.append(predictor.train(before, target / target.sum(axis=1, keepdims=True)))
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    assert accuracy() > frozen + 0.05


def test_the_gradient_is_that_of_the_cross_entropy():
    rng = np.random.default_rng(1)
    predictor = ResidualRouter(rng.normal(size=(5, 4)), width=3, rate=0.0)
    predictor.parameters[1][:] = rng.normal(size=(3, 4))
    hidden, target = rng.normal(size=(6, 5)), rng.dirichlet(np.ones(4), 6)

    def loss():
        logits = predictor.logits(hidden)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return -(target * logs).sum(axis=1).mean()

    assert predictor.train(hidden, target) == pytest.approx(loss())
    for index in range(2):
        gradient = predictor._means[index] / 0.1
        at = (1, 2)
        old = predictor.parameters[index][at]
        predictor.parameters[index][at] = old + 1e-6
        up = loss()
        predictor.parameters[index][at] = old - 1e-6
        down = loss()
        predictor.parameters[index][at] = old
        assert gradient[at] == pytest.approx((up - down) / 2e-6, rel=1e-4)


def test_targets_that_are_no_probabilities_are_named():
    predictor = ResidualRouter(np.zeros((3, 4)))
    for target in (np.full((2, 4), 0.3), np.full((2, 4), np.nan), np.array([[2, -1, 0, 0.0]] * 2)):
        with pytest.raises(InputError, match=r"target: rows must be probabilities in \[0, 1\]"):
            predictor.train(np.zeros((2, 3)), target)
    with pytest.raises(InputError, match="weight"):
        ResidualRouter(np.zeros(3))
    with pytest.raises(InputError, match="bias"):
        ResidualRouter(np.zeros((3, 4)), np.zeros(3))
