"""The rerun of expert placement, on generated loads."""

import numpy as np

from gpusched.reproduce import experts
from gpusched.reproduce.claim import Setting


def test_one_instance_is_optimal_and_ordered():
    weight = experts.model_loads(Setting())["26 x 64"]
    network = experts.NETWORKS["fat-tree"]
    trips = experts.trip_hops(network.hops(), len(weight))
    row = experts._row(network.name, "26 x 64", 1.5, weight, trips)
    assert row.gap < 1e-9
    assert row.best <= min(row.blind, row.round_robin) + 1e-9
    assert np.isnan(row.greedy) or row.best <= row.greedy + 1e-9


def test_all_networks_join_as_many_servers():
    assert {network.servers for network in experts.NETWORKS.values()} == {32}


def test_placements_for_a_task_are_judged_on_the_others(shared):
    own, other = experts._shift(Setting(traces=shared / "traces"))
    assert own > other > 0
    assert experts._shift(Setting()) is None
