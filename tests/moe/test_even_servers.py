import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.moe.even_servers import even_servers
from gpusched.moe.loads import dirichlet_loads
from gpusched.moe.placement import place_experts, trip_hops
from gpusched.moe.topology import leaf_spine


def instance(seed=0, **more):
    weight = dirichlet_loads(4, 32, 4, 1.0, seed)
    trips = trip_hops(leaf_spine(4, 2).hops(), 4)
    return place_experts(weight, trips, layer_cap=4, **more), trips


@given(st.integers(0, 200), st.floats(1.2, 3.0))
def test_loads_stay_within_the_ratio_and_counts_as_they_were(seed, ratio):
    best, trips = instance(seed)
    try:
        even = even_servers(best, trips, ratio)
    except InfeasibleError:
        return
    load = even.server_load(8)
    assert (load <= ratio * load.mean() * (1 + 1e-9)).all()
    for before, after in zip(best.at, even.at, strict=True):
        assert (np.bincount(before, minlength=8) == np.bincount(after, minlength=8)).all()
    assert even.hops >= best.hops - 1e-9
    assert even.bound == best.bound


def test_a_tighter_ratio_costs_more_hops_and_a_loose_one_nothing():
    best, trips = instance()
    hops = [even_servers(best, trips, ratio).hops for ratio in (1.35, 1.6, 2.0, 99.0)]
    assert hops == sorted(hops, reverse=True)
    assert hops[-1] == pytest.approx(best.hops)


def test_copies_stay_apart():
    best, trips = place_experts(
        dirichlet_loads(4, 32, 4, 0.4), trip_hops(leaf_spine(4, 2).hops(), 4), layer_cap=6,
        replicas=16,
    ), trip_hops(leaf_spine(4, 2).hops(), 4)  # fmt: skip
    even = even_servers(best, trips, 1.8)
    for layer in range(4):
        pairs = set(zip(even.expert_of[layer].tolist(), even.at[layer].tolist(), strict=True))
        assert len(pairs) == 48


def test_what_cannot_be_is_named():
    best, trips = instance()
    with pytest.raises(InputError, match="server_load_ratio: must be at least 1"):
        even_servers(best, trips, float("nan"))
    skewed = np.full((1, 32), 0.01)
    skewed[0, 5] = 10.0
    alone = place_experts(skewed, trips[:1], layer_cap=4)
    with pytest.raises(InfeasibleError, match="expert 5 of layer 0 alone carries"):
        even_servers(alone, trips[:1], 1.5)
    full = place_experts(np.ones((1, 32)), trips[:1], layer_cap=8)
    with pytest.raises(InfeasibleError, match=r"layer 0: no swap .* below 2\.00 times"):
        even_servers(full, trips[:1], 1.5)
