import sys
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.moe import flow
from gpusched.moe.flow import Program, check_caps, solve
from gpusched.moe.loads import dirichlet_loads
from gpusched.moe.placement import (
    given_placement,
    greedy,
    nearest_first,
    place_experts,
    round_robin,
    trip_hops,
)
from gpusched.moe.split import load_ratios, split_servers
from gpusched.moe.topology import dragonfly, fat_tree, leaf_spine


def has_ortools():
    try:
        import ortools.graph.python.min_cost_flow  # noqa: F401
    except ImportError:
        return False
    return True


METHODS = ["exchange", "lp", *(["ortools"] if has_ortools() else [])]


@st.composite
def programs(draw, copies=False):
    """Random small programs with caps that may or may not bind or suffice."""
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    servers = draw(st.integers(1, 3))
    numbers = st.integers(0, 9)
    cost = np.array(
        draw(
            st.lists(
                numbers, min_size=layers * experts * servers, max_size=layers * experts * servers
            )
        )
    ).reshape(layers, experts, servers)
    items = experts + (draw(st.integers(0, 2)) if copies else 0)
    expert_of = np.stack(
        [
            np.concatenate(
                [
                    np.arange(experts),
                    draw(
                        st.lists(
                            st.integers(0, experts - 1),
                            min_size=items - experts,
                            max_size=items - experts,
                        )
                    ),
                ]
            ).astype(np.int64)
            for _ in range(layers)
        ]
    )
    caps = st.integers(0, items)
    layer_cap = np.array(
        draw(st.lists(caps, min_size=layers * servers, max_size=layers * servers))
    ).reshape(layers, servers)
    total_cap = np.array(
        draw(st.lists(st.integers(0, layers * items), min_size=servers, max_size=servers))
    )
    return Program(cost.astype(float), expert_of, layer_cap, total_cap)


def brute_force(program):
    layers, items = program.expert_of.shape
    servers = len(program.total_cap)
    per_layer = []
    for layer in range(layers):
        best = {}
        for at in product(range(servers), repeat=items):
            pairs = {(program.expert_of[layer, i], s) for i, s in enumerate(at)}
            count = np.bincount(at, minlength=servers)
            if len(pairs) < items or (count > program.layer_cap[layer]).any():
                continue
            cost = sum(
                program.cost[layer, program.expert_of[layer, i], s] for i, s in enumerate(at)
            )
            key = tuple(count)
            best[key] = min(best.get(key, np.inf), cost)
        per_layer.append(best)
    total = {(0,) * servers: 0.0}
    for best in per_layer:
        grown = {}
        for key, cost in total.items():
            for count, more in best.items():
                both = tuple(a + b for a, b in zip(key, count, strict=True))
                if all(b <= c for b, c in zip(both, program.total_cap, strict=True)):
                    grown[both] = min(grown.get(both, np.inf), cost + more)
        total = grown
    return min(total.values(), default=None)


@given(programs(copies=True))
def test_every_method_finds_the_brute_force_optimum(program):
    best = brute_force(program)
    for method in METHODS:
        if best is None:
            with pytest.raises(InfeasibleError):
                solve(program, method)
        else:
            at, bound = solve(program, method)
            program.check(at)
            assert program.value(at) == pytest.approx(best, abs=1e-6)
            assert bound == pytest.approx(best, abs=1e-6)


@given(programs())
def test_hall_condition_of_equal_layers_is_exact(program):
    program = Program(
        program.cost, program.expert_of,
        np.tile(program.layer_cap[:1], (len(program.layer_cap), 1)), program.total_cap,
    )  # fmt: skip
    feasible = brute_force(program) is not None
    try:
        check_caps(program)
    except InfeasibleError:
        assert not feasible
    else:
        assert feasible


def instance(layers=6, experts=24, servers=8, seed=0):
    w = dirichlet_loads(layers, experts, 4, 0.5, seed)
    return w, trip_hops(leaf_spine(servers // 2, 2).hops(), layers)


@pytest.mark.parametrize("cap", [3, 4, 6, 24])
@pytest.mark.parametrize("seed", range(3))
def test_lp_flow_and_exchange_agree(cap, seed):
    w, p = instance(seed=seed)
    values = [
        place_experts(w, p, layer_cap=cap, total_cap=18, method=m) for m in ("auto", *METHODS)
    ]
    for found in values:
        assert found.hops == pytest.approx(values[0].hops, rel=1e-9)
        assert found.bound == pytest.approx(found.hops, rel=1e-7)
        assert found.gap >= -1e-9
    assert values[0].hops <= given_placement(w, p, round_robin(6, 24, 8), "rr").hops + 1e-9


def test_tight_caps_are_a_sort_and_slack_totals_a_greedy_fill():
    w, p = instance()
    tight = place_experts(w, p, layer_cap=3)
    assert tight.method == "sort"
    assert tight.hops == pytest.approx(
        sum((np.sort(w[i])[::-1] * np.repeat(np.sort(p[i]), 3)).sum() for i in range(6))
    )
    slack = place_experts(w, p, layer_cap=5, total_cap=1000)
    assert slack.method == "sort"
    assert (slack.at == greedy(w, p, 5, 1000)).all()
    flow = place_experts(w, p, layer_cap=5, total_cap=1000, method="exchange")
    assert flow.hops == pytest.approx(slack.hops)


def test_toy_of_four_experts():
    w, p = [[4, 3, 2, 1]], [[0, 2]]
    assert place_experts(w, p, layer_cap=2).hops == 6
    assert given_placement(w, p, [[0, 1, 0, 1]], "rr").hops == 8
    blind = place_experts([[1, 1, 1, 1]], p, layer_cap=2)
    assert 6 <= given_placement(w, p, blind.at, "blind").hops <= 14


def test_uniform_loads_depend_on_counts_alone():
    w, p = np.ones((4, 12)), instance(4)[1]
    found = place_experts(w, p, layer_cap=3, total_cap=8)
    again = given_placement(w, p, np.sort(found.at, axis=1), "x")
    assert again.hops == pytest.approx(found.hops)


def test_equal_hops_and_one_server():
    w = instance()[0]
    assert place_experts(w, np.full((6, 8), 3.0), layer_cap=4).hops == pytest.approx(3 * w.sum())
    assert place_experts(w, trip_hops([[0]], 6), layer_cap=24).hops == 0


@given(st.integers(0, 50))
def test_larger_caps_never_cost_and_labels_do_not_matter(seed):
    w, p = instance(4, 12, 4, seed)
    costs = [
        place_experts(w, p, layer_cap=c, total_cap=t).hops
        for c, t in ((3, 12), (4, 12), (4, 14), (12, 14))
    ]
    assert all(a >= b - 1e-9 for a, b in pairwise(costs))
    shuffled = np.random.default_rng(seed).permutation(12)
    again = place_experts(w[:, shuffled], p, layer_cap=4, total_cap=12)
    assert again.hops == pytest.approx(costs[1])


def test_moves_cost_and_a_high_price_stops_them():
    w, p = instance()
    old = round_robin(6, 24, 8)
    free, dear = (
        place_experts(w, p, layer_cap=4, total_cap=18, previous=old, move_cost=c)
        for c in (0.0, 1e3)
    )
    some = place_experts(w, p, layer_cap=4, total_cap=18, previous=old, move_cost=0.2)
    lp = place_experts(w, p, layer_cap=4, total_cap=18, previous=old, move_cost=0.2, method="lp")
    assert dear.moved == 0
    assert dear.hops >= some.hops >= free.hops - 1e-9
    assert 0 < some.moved < free.moved
    assert some.objective == pytest.approx(some.hops + 0.2 * some.moved)
    assert some.objective == pytest.approx(lp.objective)


def test_copies_are_items_on_different_servers():
    w, p = instance()
    found = place_experts(w, p, layer_cap=5, total_cap=26, replicas=8)
    assert found.at.shape == (6, 32)
    assert found.weight.sum(axis=1) == pytest.approx(4)
    for layer in range(6):
        pairs = set(zip(found.expert_of[layer].tolist(), found.at[layer].tolist(), strict=True))
        assert len(pairs) == 32
    lp = place_experts(w, p, layer_cap=5, total_cap=26, replicas=8, method="lp")
    assert found.hops == pytest.approx(lp.hops, rel=1e-7)


def test_infeasible_caps_name_the_servers():
    w, p = instance()
    with pytest.raises(InfeasibleError, match=r"144 experts of 6 layers .* room for 136"):
        place_experts(w, p, layer_cap=4, total_cap=17)
    with pytest.raises(InfeasibleError, match=r"layer 0 has 24 experts, but .* hold 16"):
        place_experts(w, p, layer_cap=2)
    with pytest.raises(InfeasibleError, match=r"on servers 0 to 3 by their caps .* 4 to 7 by the"):
        place_experts(w, p, layer_cap=5, total_cap=[5] * 4 + [99] * 4)
    nine = np.concatenate([np.arange(24), np.zeros(8)]).astype(np.int64)[None, :]
    copies = Program(np.zeros((1, 24, 8)), nine, np.full((1, 8), 9), np.full(8, 9))
    with pytest.raises(InfeasibleError, match="9 copies, but only 8 servers"):
        solve(copies)


def test_no_expert_gets_more_copies_than_there_are_servers():
    w, p = np.full((1, 24), 1e-6), instance()[1][:1]
    w[0, 0] = 1.0
    found = place_experts(w, p, layer_cap=9, replicas=10)
    assert np.bincount(found.expert_of[0]).max() == 8
    with pytest.raises(InputError, match="replicas: 200 are too many"):
        place_experts(w, p, layer_cap=99, replicas=200)


def test_overloaded_servers_without_a_way_out_are_named():
    # layers 1 and 2 may use servers 0 and 1 alone, whose totals suffice for either but not for both
    program = Program(
        np.zeros((3, 4, 3)), np.tile(np.arange(4), (3, 1)),
        np.array([[0, 0, 9], [4, 4, 0], [4, 4, 0]]), np.array([3, 3, 9]),
    )  # fmt: skip
    with pytest.raises(InfeasibleError, match="servers 0, 1 may hold 6 experts, but 8"):
        solve(program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": [[1, np.nan]]}, "weight: .* nan"),
        ({"trips": np.zeros((3, 2))}, "trips: "),
        ({"layer_cap": -1}, "layer_cap"),
        ({"replicas": -1}, "replicas"),
        ({"move_cost": np.nan}, "move_cost"),
        ({"previous": [[0, 7]]}, "previous: "),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"weight": [[1, 1]], "trips": [[0, 1]], "layer_cap": 2} | change
    with pytest.raises(InputError, match=message):
        place_experts(arguments.pop("weight"), arguments.pop("trips"), **arguments)


def test_hosts():
    d = leaf_spine(2, 2).hops()
    consecutive = trip_hops(d, 6)
    assert consecutive[0].tolist() == (d[0] + d[1]).tolist()
    assert consecutive[5].tolist() == (2 * d[1]).tolist()
    assert (trip_hops(d, 2, "all") == 2 * d.mean(axis=0)).all()
    assert (trip_hops(d, 2, [3, 3]) == 2 * d[3]).all()
    for bad, word in (([0], "one server for each"), ([0, 9], "servers are 0 to 3"), ("x", "hosts")):
        with pytest.raises(InputError, match=word):
            trip_hops(d, 2, bad)


def test_greedy_may_run_out_of_room():
    w, p = np.ones((2, 2)), np.array([[0.0, 1, 2], [0, 1, 2]])
    caps = {"layer_cap": 1, "total_cap": [2, 1, 1]}
    assert place_experts(w, p, **caps).hops == pytest.approx(0 + 0 + 1 + 2)
    assert (greedy(w, p, **caps) < 3).all()
    far = np.array([[0.0, 1, 2], [2, 2, 2]])
    assert place_experts(w, far, layer_cap=1, total_cap=[1, 1, 2]).hops == pytest.approx(6)
    with pytest.raises(InfeasibleError, match="greedy: layer 1 finds room for 1 of 2"):
        greedy(w, far, 1, [1, 1, 2])


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(0, 99)
)
def test_gpus_hold_equal_counts(layers, servers, gpus, items, seed):
    rng = np.random.default_rng(seed)
    at = rng.integers(0, servers, (layers, items))
    weight = rng.random((layers, items))
    gpu = split_servers(at, weight, servers, gpus)
    assert (gpu // gpus == at).all()
    counts = np.stack([np.bincount(row, minlength=servers * gpus) for row in gpu])
    by_server = counts.reshape(layers, servers, gpus)
    assert (by_server.max(axis=2) - by_server.min(axis=2) <= 1).all()
    total = by_server.sum(axis=0)
    assert (total.max(axis=1) - total.min(axis=1) <= 1).all()
    assert (load_ratios(gpu, weight, servers * gpus) >= 1 - 1e-9).all()


def test_split_evens_out_load():
    gpu = split_servers(np.zeros((1, 4), np.int64), np.array([[4.0, 3, 2, 1]]), 1, 2)
    assert load_ratios(gpu, np.array([[4.0, 3, 2, 1]]), 2) == pytest.approx(1.0)


def test_nearest_first_puts_the_heaviest_nearest():
    at = nearest_first(np.array([[1.0, 5, 3]]), np.array([[2.0, 0]]), np.array([[2, 1]]))
    assert at.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("network", [fat_tree(4), dragonfly(4, 2, 2), leaf_spine(4, 4)])
def test_published_size_over_several_networks_is_optimal(network):
    sparse = network.sparse(0.3, 1)
    w = dirichlet_loads(58, 256, 8, 0.5)
    found = place_experts(
        w, trip_hops(sparse.hops(), 58), layer_cap=32, total_cap=-(-58 * 256 // 16)
    )
    assert found.method == "exchange"
    assert 0 <= found.gap < 1e-9


def test_ortools_is_asked_for_by_name_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.graph.python.min_cost_flow", None)
    w, p = instance()
    with pytest.raises(InputError, match=r"needs OR-tools; pip install gpusched\[ortools\]"):
        place_experts(w, p, layer_cap=4, total_cap=18, method="ortools")
    assert place_experts(w, p, layer_cap=4, total_cap=18).method == "exchange"


def test_progress_counts_down(monkeypatch):
    monkeypatch.setattr(flow, "PATHS", 1)
    told = []
    w, p = instance()
    found = place_experts(w, p, layer_cap=4, total_cap=18, progress=told.append)
    left = [int(text.split()[2]) for text in told]
    assert left == list(range(len(left), 0, -1))
    lp = place_experts(w, p, layer_cap=4, total_cap=18, method="lp")
    assert found.hops == pytest.approx(lp.hops)
