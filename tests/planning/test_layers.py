"""Placement of layers: the digest's worked instances, brute force, invariants, the Helix figures."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.planning.layers.arcs import solve_arcs
from gpusched.planning.layers.baselines import petals, separate, swarm
from gpusched.planning.layers.bounds import (
    cheapest_cover,
    covering_bound,
    halves_bound,
    upper_bound,
    work_bound,
)
from gpusched.planning.layers.candidates import Candidate, candidates
from gpusched.planning.layers.cheaper import leave_out
from gpusched.planning.layers.check import check_placement
from gpusched.planning.layers.flow import Network, network_of, reroute, solve_flow
from gpusched.planning.layers.improve import improve
from gpusched.planning.layers.judge import Trial
from gpusched.planning.layers.milp import prune, solve_milp, stop_near
from gpusched.planning.layers.planner import polished, verify
from gpusched.planning.layers.polish import bottleneck_nodes, by_program, polish
from gpusched.planning.layers.spread import spread_flow
from gpusched.planning.layers.stages import StageSets, best_stages, place_stages
from gpusched.solve.flow import max_flow
from gpusched.solve.milp import Incumbent
from gpusched.timing.layers import LayerProfile
from gpusched.timing.machines import Machines, Placement


def fleet(tables, kind_of, layers, link_tokens_per_s=1e9, regions=None):
    """A fleet with the given tables, and links that all carry the same."""
    n = len(kind_of)
    times = np.array([0.0, 1.0])
    kinds = tuple(
        LayerProfile(f"kind{i}", times, times, times, times, np.full(len(table), 1e6), 1e12)
        for i, table in enumerate(tables)
    )
    bandwidth = np.full((n + 1, n + 1), link_tokens_per_s)
    bandwidth[n] = bandwidth[:, n] = 1e9
    np.fill_diagonal(bandwidth, np.inf)
    machines = Machines(
        tuple(f"node{i}" for i in range(n)), regions or ("here",) * n, np.array(kind_of), kinds,
        bandwidth, np.zeros((n + 1, n + 1)), layers, 1.0, 1.0,
    )  # fmt: skip
    return network_of(machines, tuple(np.array(table, np.float64) for table in tables))


def toy(link=1e9) -> Network:
    """One machine that holds all four layers and two that hold two."""
    return fleet([(40, 20, 13, 10), (24, 12)], [0, 1, 1], 4, link)


def brute_force(network: Network, partial: bool = False) -> float:
    """The largest flow over all placements."""
    layers = network.machines.layers
    options = [
        [(0, 0)] + [(s, k) for k in range(1, int(most) + 1) for s in range(layers - k + 1)]
        for most in network.most
    ]
    return max(
        solve_flow(
            network,
            Placement(np.array([s for s, _ in choice]), np.array([k for _, k in choice])),
            partial_inference=partial,
        ).tokens_per_s
        for choice in product(*options)
    )


@pytest.mark.parametrize(("link", "best"), [(1e9, 22.0), (5.0, 15.0)])
@pytest.mark.parametrize("partial", [False, True])
def test_toy_optimum(link, best, partial):
    network = toy(link)
    assert brute_force(network, partial) == pytest.approx(best)
    found = solve_milp(network, partial_inference=partial, time_limit_s=20)
    assert found.tokens_per_s == pytest.approx(best)
    assert found.solution.status == "optimal"


@pytest.mark.parametrize("partial", [False, True])
def test_full_form_has_the_same_optimum(partial):
    network = toy(5.0)
    found = solve_milp(network, partial_inference=partial, full=True, time_limit_s=20)
    assert found.solution.status == "optimal"
    assert found.tokens_per_s == pytest.approx(15)
    assert found.bound == pytest.approx(15)


def late() -> tuple[Network, Placement]:
    """A start that needs partial inference."""
    network = fleet([(20, 10), (18, 9)], [0, 0, 1, 1], 3)
    return network, Placement(np.array([0, 1, 0, 0]), np.array([2, 2, 0, 0]))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_start_is_accepted_whole(partial, full):
    """With every node's layers fixed the only solution is the start, and the solver agrees."""
    network, start = (
        late() if partial else (toy(), Placement(np.array([0, 0, 2]), np.array([4, 2, 2])))
    )
    own = solve_flow(network, start, partial_inference=partial).tokens_per_s
    assert own > 0
    found = solve_milp(
        network, partial_inference=partial, full=full, start=start,
        free=np.zeros(network.n, np.bool_), time_limit_s=10,
    )  # fmt: skip
    assert found.solution.status == "optimal"
    assert found.solution.objective == pytest.approx(own)
    assert found.bound == np.inf


def test_start_is_never_lost():
    """However little time there is, pruned or not."""
    network = fleet([(40, 20, 13, 10), (24, 12)], [0] * 4 + [1] * 6, 12)
    start = candidates(network)[0]
    for links in (None, prune(network, keep=2)):
        for seconds in (0.0, 1.0):
            found = solve_milp(network, start=start.placement, links=links, time_limit_s=seconds)
            assert found.tokens_per_s >= start.tokens_per_s * (1 - 1e-9)
            assert found.solution.objective >= start.tokens_per_s * (1 - 1e-6)
            assert found.bound >= found.tokens_per_s * (1 - 1e-6)
    assert found.bound == np.inf


@settings(max_examples=8)
@given(kinds=st.lists(st.integers(0, 1), min_size=2, max_size=3), layers=st.integers(2, 3),
       link=st.sampled_from([1e9, 12.0, 3.0]), partial=st.booleans())  # fmt: skip
def test_polish_reaches_brute_force_from_any_start(kinds, layers, link, partial):
    network = fleet([(30, 14, 9), (22, 10)], kinds, layers, link)
    best = brute_force(network, partial)
    nothing = Placement(np.zeros(network.n, np.int64), np.ones(network.n, np.int64))
    found = polish(network, nothing, partial_inference=partial, time_limit_s=20)
    assert found.tokens_per_s == pytest.approx(best, rel=0.0051)
    assert found.bound >= best * (1 - 1e-6)
    assert found.gap <= 0.0051


def test_polish_lays_a_part_anew():
    """The mixed optimum, by one part alone."""
    network = toy()
    start = Placement(np.array([0, 0, 2]), np.array([2, 2, 2]))
    free = np.array([True, False, False])
    found = solve_milp(network, start=start, free=free, time_limit_s=10)
    assert found.placement is not None
    assert np.array_equal(found.placement.first[1:], start.first[1:])
    assert np.array_equal(found.placement.count[1:], start.count[1:])
    assert found.tokens_per_s == pytest.approx(22)


def test_parts_hold_the_bottleneck():
    network = toy()
    start = Placement(np.array([0, 0, 2]), np.array([2, 2, 2]))
    flow = solve_flow(network, start)
    free = bottleneck_nodes(network, start, 2, np.random.default_rng(0))
    assert free.sum() == 2
    ends = {node for link in flow.cut_links for node in link if node < 3}
    assert (set(flow.cut_nodes) | ends) & set(np.flatnonzero(free).tolist())


def test_program_puts_what_it_finds_first():
    network = toy()
    stages = [c for c in candidates(network) if c.name.startswith("stages")]
    bound = upper_bound(network.tables, np.array([1, 2]), 4)
    solved, found = by_program(network, stages, bound, 10.0, 0)
    assert found[0].tokens_per_s == pytest.approx(22)
    assert found[1:] == stages
    assert solved.bound >= 22 * (1 - 1e-9)
    assert verify(network, found[0]) == []
    # no time: what there was
    solved, found = by_program(network, stages, bound, 0.0, 0)
    assert found == stages
    assert solved.bound == pytest.approx(bound.tokens_per_s)


def test_rule_to_stop():
    stop = stop_near(100.0, near=0.9, patience_s=10.0, enough=0.99)
    assert stop(Incumbent(1.0, 99.5, 100.0, 0.0))
    assert stop(Incumbent(20.0, 91.0, 100.0, 11.0))
    assert not stop(Incumbent(20.0, 91.0, 100.0, 9.0))
    assert not stop(Incumbent(99.0, 89.0, 100.0, 90.0))
    assert not stop(Incumbent(99.0, -np.inf, 100.0, 90.0))


class FlowJudge:
    """A judge that goes by the flow."""

    def __init__(self, network):
        self.network, self.cut_short = network, False

    def trial(self, candidate, routing="iwrr"):
        assert verify(self.network, candidate) == []
        flows = solve_flow(self.network, candidate.placement).flows
        return Trial(candidate, flows, {}, candidate.tokens_per_s, routing)


@pytest.mark.parametrize(("asked", "usd"), [(9.0, 2.0), (21.0, 4.0), (60.0, 12.0)])
def test_nodes_not_needed_are_left_out(asked, usd):
    """One node of four layers costs 2 and carries 10; two of two layers cost 1 each and carry 12."""
    network = fleet([(40, 20, 13, 10), (24, 12)], [0, 0, 0, 1, 1, 1, 1, 1, 1], 4)
    prices = np.array([2.0] * 3 + [1.0] * 6)
    judge = FlowJudge(network)
    start = judge.trial(candidates(network)[0])
    assert start.score >= asked
    steps = leave_out(judge, start, prices, lambda t: t.score >= asked, np.inf)
    spent = [float(prices[t.candidate.placement.count > 0].sum()) for t in steps]
    assert all(trial.score >= asked for trial in steps)
    assert all(more > less for more, less in pairwise(spent))
    assert spent[-1] == usd
    assert not judge.cut_short


def test_leaving_out_ends_with_the_time():
    network = fleet([(40, 20, 13, 10)], [0, 0, 0], 4)
    judge = FlowJudge(network)
    start = judge.trial(candidates(network)[0])
    assert leave_out(judge, start, np.ones(3), lambda t: True, 0.0) == [start]
    assert judge.cut_short
    # free nodes stay
    assert leave_out(judge, start, np.zeros(3), lambda t: True, np.inf) == [start]


def test_arc_form_starts_from_a_placement():
    network = fleet([(40, 20, 13, 10), (24, 12)], [0] * 4 + [1] * 6, 12)
    start = candidates(network)[0]
    through = solve_flow(network, start.placement).flows[:, : network.n].sum(axis=0)
    found = solve_arcs(
        network.machines, network.tables, start=(start.placement, through), time_limit_s=0.0
    )
    assert found.solution.objective >= start.tokens_per_s * (1 - 1e-6)


def test_arc_form_agrees_with_brute_force_on_a_free_network():
    network = toy()
    for partial in (False, True):
        found = solve_arcs(network.machines, network.tables, partial_inference=partial)
        assert found.solution.objective == pytest.approx(22.0)
        assert found.placement is not None
        assert solve_flow(network, found.placement).tokens_per_s == pytest.approx(22.0)


def test_partial_inference_lets_flow_enter_a_node_late():
    network = fleet([(20, 10)], [0, 0], 3)
    placement = Placement(np.array([0, 1]), np.array([2, 2]))
    assert solve_flow(network, placement).tokens_per_s == 0
    assert solve_flow(network, placement, partial_inference=True).tokens_per_s == pytest.approx(10)


def test_degenerate_fleets():
    assert brute_force(fleet([(9.0,)], [0, 0], 3)) == 0
    assert brute_force(fleet([(30, 14, 7)], [0], 3)) == pytest.approx(7)
    assert brute_force(fleet([(30, 14, 7), (50, 20)], [0, 1, 1], 3, 0.0)) == pytest.approx(7)


tables = st.lists(
    st.lists(st.integers(1, 60), min_size=1, max_size=3).map(lambda t: sorted(t, reverse=True)),
    min_size=1,
    max_size=2,
)


@settings(max_examples=8)
@given(tables=tables, kinds=st.lists(st.integers(0, 1), min_size=1, max_size=3),
       layers=st.integers(1, 3), link=st.sampled_from([1e9, 12.0, 3.0]))  # fmt: skip
def test_bounds_and_methods_against_brute_force(tables, kinds, layers, link):
    kinds = [min(kind, len(tables) - 1) for kind in kinds]
    network = fleet(tables, kinds, layers, link)
    best = max(brute_force(network), brute_force(network, partial=True))
    numbers = np.bincount(kinds, minlength=len(tables))
    assert best <= work_bound(network.tables, numbers, layers) * (1 + 1e-9)
    assert best <= halves_bound(network.tables, numbers, layers) * (1 + 1e-9) or best == 0
    work = work_bound(network.tables, numbers, layers)
    assert best <= covering_bound(network.tables, numbers, layers, best / 2, work) * (1 + 1e-6)
    for candidate in candidates(network):
        assert candidate.tokens_per_s <= best * (1 + 1e-9)
        assert verify(network, candidate) == []


@given(st.data())
def test_max_flow_equals_its_cut_and_networkx(data):
    networkx = pytest.importorskip("networkx")
    vertices = data.draw(st.integers(2, 7))
    arcs = data.draw(
        st.lists(
            st.tuples(st.integers(0, vertices - 1), st.integers(0, vertices - 1),
                      st.integers(0, 30)),
            max_size=20,
        )
    )  # fmt: skip
    arcs = [arc for arc in arcs if arc[0] != arc[1]]
    tails, heads, capacities = (np.array([a[i] for a in arcs], np.int64) for i in range(3))
    found = max_flow(vertices, tails, heads, capacities, source=0, sink=vertices - 1)
    crossing = found.source_side[tails] & ~found.source_side[heads]
    assert found.value == pytest.approx(float(capacities[crossing].sum()))
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(vertices))
    for tail, head, capacity in arcs:
        before = graph.get_edge_data(tail, head, {"capacity": 0})["capacity"]
        graph.add_edge(tail, head, capacity=before + capacity)
    assert found.value == pytest.approx(networkx.maximum_flow_value(graph, 0, vertices - 1))
    net = np.bincount(heads, found.flow, vertices) - np.bincount(tails, found.flow, vertices)
    assert np.allclose(net[1:-1], 0.0)


def random_network(rng: np.random.Generator) -> tuple[Network, Placement]:
    layers = int(rng.integers(2, 7))
    tables = [np.sort(rng.uniform(1, 50, rng.integers(1, layers + 1)))[::-1] for _ in range(3)]
    kinds = rng.integers(0, 3, 6).tolist()
    network = fleet(tables, kinds, layers, float(rng.choice([1e9, 10.0])))
    count = np.array([rng.integers(0, m + 1) for m in network.most])
    first = np.array([rng.integers(0, layers - k + 1) if k else 0 for k in count])
    return network, Placement(first, count)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_flows_obey_layer_cuts_and_grow_with_nodes_and_links(seed):
    network, placement = random_network(np.random.default_rng(seed))
    rates = network.rates(placement.count)
    for partial in (False, True):
        flow = solve_flow(network, placement, partial_inference=partial)
        assert flow.cut == pytest.approx(flow.tokens_per_s, abs=1e-6)
        for layer in range(network.machines.layers):
            holds = (placement.first <= layer) & (layer < placement.first + placement.count)
            assert flow.tokens_per_s <= rates[holds].sum() + 1e-6
        alive = np.ones(network.n, np.bool_)
        alive[seed % network.n] = False
        assert reroute(network, placement, alive)[network.n].sum() <= flow.tokens_per_s + 1e-6
        total, spread = spread_flow(network, placement, partial_inference=partial)
        assert spread[network.n].sum() == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert (spread[:, : network.n].sum(axis=0) <= rates * (1 + 1e-4) + 1e-6).all()


def test_check_finds_what_is_wrong():
    held = {"a": (0, 2), "b": (2, 1)}
    right = {
        "layers": 3, "held": held, "rates": {"a": 10.0, "b": 8.0},
        "capacities": {("front", "a"): 99.0, ("a", "b"): 99.0, ("b", "front"): 99.0},
        "flows": {("front", "a"): 8.0, ("a", "b"): 8.0, ("b", "front"): 8.0}, "cut": ["b"],
    }  # fmt: skip
    assert check_placement(**right) == []
    for change, word in (
        ({"held": {"a": (0, 2), "b": (1, 1)}}, "no node holds layer 2"),
        ({"rates": {"a": 10.0, "b": 7.0}}, "exceed"),
        ({"flows": {**right["flows"], ("a", "b"): 7.0}}, "leave"),
        ({"capacities": {**right["capacities"], ("a", "b"): 5.0}}, "exceeds the link"),
        ({"cut": ["a"]}, "cut's capacity"),
        ({"cut": []}, "avoids the cut"),
    ):
        assert any(word in line for line in check_placement(**{**right, **change})), change


def test_cheapest_cover_against_brute_force():
    weights, sizes = np.array([0.3, 0.5, 1.0]), np.array([3, 5, 9])
    cost, chosen = cheapest_cover(weights, sizes, 10)
    best = min(
        np.dot(weights, use) for use in product(range(5), repeat=3) if np.dot(sizes, use) >= 10
    )
    assert cost == pytest.approx(best)
    assert sizes[chosen].sum() >= 10


def test_baselines_place_every_layer():
    network = fleet([(40, 20, 13, 10), (24, 12)], [0, 0, 1, 1, 1, 1], 8)
    for placement in (swarm(network), separate(network, mixed=True)):
        assert placement is not None
        assert solve_flow(network, placement).tokens_per_s > 0
    joined = petals(network, seed=3)
    assert solve_flow(network, joined, partial_inference=True).tokens_per_s > 0
    assert np.array_equal(joined.count, network.most)


def test_pruning_keeps_enough_links_of_every_node():
    network = fleet([(9, 4)], [0] * 8, 4, regions=("a",) * 4 + ("b",) * 4)
    kept = prune(network, keep=3)
    assert (kept[:8, :8].sum(axis=1) >= 3).all()
    assert kept[8, :8].all()
    assert kept[:8, 8].all()


def test_local_search_finds_the_mixed_optimum_that_stages_miss():
    network = toy()
    stages = next(c for c in candidates(network) if c.name.startswith("stages"))
    assert stages.tokens_per_s == pytest.approx(20)
    mixed = polished(network, stages, 0, 10.0)
    assert mixed.tokens_per_s == pytest.approx(22)
    assert verify(network, mixed) == []


def test_local_search_repairs_a_bad_start():
    network = fleet([(40, 20, 13, 10)], [0, 0], 4)
    start = Placement(np.array([0, 0]), np.array([4, 4]))
    best, value = improve(
        network, start, lambda p: solve_flow(network, p).tokens_per_s, attempts=200, seed=1
    )
    assert value == pytest.approx(20)
    assert verify(network, Candidate("", best, value)) == []


# ---- published figures


@pytest.fixture(scope="module")
def helix(shared):
    from gpusched.reproduce import helix_data

    def load(cluster, model="llama2_70b"):
        machines = helix_data.machines_of(shared / "data" / "helix", cluster, model)
        return network_of(machines, helix_data.throughput_of(machines, model))

    return load


def test_helix_tables_and_bounds(helix):
    network = helix("single24")
    a100, l4, t4 = network.tables
    assert a100[[0, 7, 11]] == pytest.approx([23833.9, 2045.6, 952.1], abs=0.1)
    assert l4[[0, 3, 6]] == pytest.approx([7557.9, 1476.1, 531.7], abs=0.1)
    assert t4 == pytest.approx([5709.2, 2434.4, 1347.9, 757.9], abs=0.1)
    for cluster, bound in (("single24", 2803.860988), ("hetero42", 7104.2576)):
        network = helix(cluster)
        numbers = np.bincount(network.machines.kind_of)
        assert work_bound(network.tables, numbers, 80) == pytest.approx(bound, abs=1e-3)
    network = helix("quality10", "llama1_30b")
    assert network.tables[0] == pytest.approx(
        [2485.54, 1145.04, 763.52, 480.99, 384.90, 286.59, 245.73, 189.11, 168.17, 212.64, 193.50],
        abs=0.01,
    )


def test_helix_ten_nodes_is_proved_optimal(helix):
    network = helix("quality10", "llama1_30b")
    machines = network.machines
    numbers = np.bincount(machines.kind_of)
    found = best_stages(StageSets(network.tables, numbers), machines.layers)
    assert found is not None
    placement = place_stages(found[1], machines.kind_of)
    value = solve_flow(network, placement).tokens_per_s
    assert value == pytest.approx(286.5874, abs=1e-4)
    assert upper_bound(network.tables, numbers, 60, lower=value).tokens_per_s == pytest.approx(
        value
    )


@pytest.mark.parametrize(
    ("cluster", "method", "flow"),
    [("single24", "ilp", 1289.5558), ("geo24", "ilp", 1212.1832), ("hetero42", "ilp", 4137.5475),
     ("hetero42", "swarm", 4892.24)],
)  # fmt: skip
def test_helix_published_layouts_have_the_published_flow(helix, cluster, method, flow):
    from gpusched.reproduce.helix_data import published_layout

    found = solve_flow(helix(cluster), published_layout(cluster, method))
    assert found.tokens_per_s == pytest.approx(flow, abs=0.01)


@pytest.mark.parametrize(
    ("cluster", "goal"), [("single24", 2045.0), ("geo24", 1754.0), ("hetero42", 5441.0)]
)
def test_helix_clusters_reach_the_goals(helix, cluster, goal):
    network = helix(cluster)
    best = candidates(network)[0]
    assert best.tokens_per_s >= goal
    assert verify(network, best) == []
