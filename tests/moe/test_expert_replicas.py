import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.moe.expert_layer import ExpertLayer, home_split
from gpusched.moe.replica_program import best_replicas, best_split
from gpusched.moe.replicas import PUBLISHED, WIDE, PlannerSettings, ReplicaPlanner


def layer(**changes):
    given = {
        "experts": 4, "ranks": 2, "token_s": 1.0, "expert_s": 0.0, "exchange_token_s": 0.0,
        "transfer_expert_s": 1.0, "attention_s": 0.0, "replica_slots": 1,
    }  # fmt: skip
    return ExpertLayer(**(given | changes))


def without_replicas(own, tokens):
    hosted = own.natives()
    time = own.time(tokens, hosted, home_split(tokens, hosted, hosted.astype(float)))
    return float((time.compute_s + time.exchange_s).max())


TWO_RANKS = np.array([[30, 30], [10, 10], [5, 5], [5, 5]], float)


@pytest.mark.parametrize("settings", [PUBLISHED, WIDE])
def test_half_of_a_hot_expert_goes_to_its_replica(settings):
    planner = ReplicaPlanner(layer(), settings)
    plan = planner.plan(TWO_RANKS)
    assert plan.replicas == 1
    assert plan.hosted[0].tolist() == [1, 1]
    time = layer().time(TWO_RANKS, plan.hosted, plan.remote)
    assert time.load.tolist() == [50, 50]
    assert time.imbalance_ratio == 1.0


@pytest.mark.parametrize("settings", [PUBLISHED, WIDE])
def test_tokens_of_the_home_rank_stay_there(settings):
    tokens = TWO_RANKS.copy()
    tokens[0] = [50, 10]
    plan = ReplicaPlanner(layer(), settings).plan(tokens)
    assert layer().time(tokens, plan.hosted, plan.remote).load.tolist() == [70, 30]


def test_a_window_too_short_for_one_expert_changes_nothing():
    own = layer(transfer_expert_s=2.0)
    assert own.budget(np.array([1.9, 1.9])).tolist() == [0, 0]
    plan = ReplicaPlanner(own).plan(TWO_RANKS, own.budget(np.array([1.9, 1.9])))
    assert plan.replicas == 0
    assert (plan.hosted == own.natives()).all()
    time = own.time(TWO_RANKS, plan.hosted, plan.remote, np.array([1.9, 1.9]))
    assert time.exposed_s == 0
    assert own.budget(np.array([2.0, 9.9])).tolist() == [1, 1]


def test_level_loads_move_nothing():
    plan = ReplicaPlanner(layer(replica_slots=3), WIDE).plan(np.full((4, 2), 10.0))
    assert plan.replicas == 0


def test_transfer_beyond_the_window_is_exposed():
    own = layer()
    hosted = own.natives()
    hosted[0, 1] = 1
    remote = home_split(TWO_RANKS, hosted, hosted.astype(float))
    time = own.time(TWO_RANKS, hosted, remote, np.array([0.25, 0.4]))
    assert time.transfer_s.tolist() == [1.0, 1.0]
    assert time.exposed_s == pytest.approx(0.75)
    assert time.layer_s == pytest.approx(time.compute_s.max() + time.exchange_s.max() + 0.75)


@st.composite
def cases(draw):
    ranks = draw(st.integers(2, 4))
    experts = ranks * draw(st.integers(1, 3))
    own = layer(
        experts=experts, ranks=ranks, expert_s=draw(st.sampled_from([0.0, 2.0])),
        exchange_token_s=draw(st.sampled_from([0.0, 0.3])), replica_slots=draw(st.integers(0, 3)),
    )  # fmt: skip
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    popularity = rng.dirichlet(np.full(experts, 0.4))
    return own, rng.multinomial(200, popularity, size=ranks).T.astype(float)


@given(cases(), st.sampled_from([PUBLISHED, PlannerSettings(3, 2, ("level",), False), WIDE]))
def test_plans_keep_tokens_caps_and_never_slow_a_layer(case, settings):
    own, tokens = case
    planner = ReplicaPlanner(own, settings)
    plan = planner.plan(tokens)
    assert ((plan.hosted == 1) | (plan.remote == 0)).all()
    assert plan.remote.min() >= -1e-9
    served = tokens * plan.hosted + plan.remote
    assert served.sum(axis=1) == pytest.approx(tokens.sum(axis=1))
    added = plan.hosted.astype(int) - own.natives()
    assert added.min() >= 0
    assert added.sum() == plan.replicas <= settings.max_moves
    assert (added.sum(axis=0) <= own.replica_slots).all()
    assert (np.bincount(own.home, added.sum(axis=1)) <= own.replica_slots).all()
    before = without_replicas(own, tokens)
    assert planner.latency_s(tokens, plan).max() <= before * (1 + 1e-9)
    assert own.time(tokens, plan.hosted, plan.remote).imbalance_ratio >= 1 - 1e-12


@given(cases(), st.integers(0, 99))
def test_exact_split_is_the_linear_program(case, seed):
    own, tokens = case
    rng = np.random.default_rng(seed)
    hosted = np.maximum(own.natives(), (rng.random(tokens.shape) < 0.3).astype(np.uint8))
    planner = ReplicaPlanner(own)
    remote = planner.split(tokens, hosted)
    pool = (tokens * (1 - hosted)).sum(axis=1)
    assert remote.sum(axis=1) == pytest.approx(pool)
    assert ((hosted == 1) | (remote == 0)).all()
    served = tokens * hosted
    active = ((served + pool[:, None] * hosted) > 0).sum(axis=0)
    inward, outward = remote.sum(axis=0), (tokens - served).sum(axis=0)
    latency = (
        own.token_s * (served + remote).sum(axis=0) + own.expert_s * active
        + own.exchange_token_s * np.maximum(inward, outward)
    )  # fmt: skip
    assert latency.max() == pytest.approx(best_split(own, tokens, hosted), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_planners_against_the_mixed_integer_optimum(seed):
    rng = np.random.default_rng(seed)
    own = layer(
        experts=8, ranks=4, expert_s=1.0 * (seed % 2), exchange_token_s=0.2, replica_slots=2
    )
    tokens = rng.multinomial(100, rng.dirichlet(np.full(8, 0.5)), size=4).T.astype(float)
    best = best_replicas(own, tokens)
    assert best.bound_s <= best.latency_s * (1 + 1e-6)
    time = own.time(tokens, best.hosted, best.remote)
    assert (time.compute_s + time.exchange_s).max() == pytest.approx(best.latency_s, rel=1e-5)
    mean_load = own.token_s * tokens.sum() / 4
    assert best.latency_s >= mean_load - 1e-6
    for settings in (PUBLISHED, WIDE):
        planner = ReplicaPlanner(own, settings)
        found = planner.latency_s(tokens, planner.plan(tokens)).max()
        assert found >= best.bound_s - 1e-6


def test_wider_moves_are_better_on_average():
    own = layer(experts=64, ranks=8, expert_s=5.0, exchange_token_s=0.2, replica_slots=3)
    rng = np.random.default_rng(0)
    published, wide = [], []
    for _ in range(30):
        tokens = rng.multinomial(400, rng.dirichlet(np.full(64, 0.5)), size=8).T.astype(float)
        for settings, found in ((PUBLISHED, published), (WIDE, wide)):
            planner = ReplicaPlanner(own, settings)
            found.append(planner.latency_s(tokens, planner.plan(tokens)).max())
    assert np.mean(wide) < np.mean(published)


@given(st.integers(0, 200))
def test_without_limits_or_pins_loads_become_level(seed):
    # tokens come from rank 3 alone, which hosts only experts nobody asks for: nothing is pinned
    rng = np.random.default_rng(seed)
    own = layer(experts=8, ranks=4, replica_slots=8)
    tokens = np.zeros((8, 4))
    tokens[:6, 3] = rng.integers(0, 50, 6)
    tokens[0, 3] += 1
    planner = ReplicaPlanner(own, PlannerSettings())
    hosted = np.ones((8, 4), np.uint8)
    hosted[:, 3] = own.natives()[:, 3]
    assert planner.split(tokens, hosted)[:, :3].sum(axis=0).max() == pytest.approx(tokens.sum() / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 5}, "experts: 5 must be a multiple of ranks"),
        ({"token_s": float("nan")}, "token_s: must be finite"),
        ({"token_s": 0.0}, "token_s: must be positive"),
        ({"expert_s": -1.0}, "expert_s: must be finite and at least 0"),
        ({"replica_slots": -1}, "replica_slots"),
    ],
)
def test_impossible_layers_are_named(change, message):
    with pytest.raises(InputError, match=message):
        layer(**change)


def test_impossible_counts_are_named():
    planner = ReplicaPlanner(layer())
    for wrong in (np.full((4, 2), np.nan), -TWO_RANKS):
        with pytest.raises(InputError, match="tokens: must be finite and at least 0"):
            planner.plan(wrong)
    with pytest.raises(InputError, match=r"tokens: must have shape \(4, 2\)"):
        planner.plan(np.ones((2, 4)))
    with pytest.raises(InputError, match="tolerance"):
        PlannerSettings(tolerance=float("nan"))
    with pytest.raises(InputError, match="at least 1"):
        PlannerSettings(experts=0)
