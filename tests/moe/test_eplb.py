import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.moe.eplb import pack_evenly, rebalance, replica_counts

WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
EXPECTED = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_worked_example_of_the_readme():
    found = rebalance(WEIGHT, 16, 4, 2, 8)
    assert found.expert_of.tolist() == EXPECTED
    for layer in range(2):
        for expert in range(12):
            slots = found.slots_of[layer, expert]
            assert len(slots[slots >= 0]) == found.copies[layer, expert]
            assert (found.expert_of[layer, slots[slots >= 0]] == expert).all()


def test_worked_example_is_the_published_file(shared):
    document = json.loads((shared / "data" / "moe" / "eplb_readme_example.json").read_text())
    assert document["weight"] == WEIGHT


@given(
    st.lists(st.integers(1, 100), min_size=8, max_size=8),
    st.sampled_from([(8, 4, 2, 4), (12, 4, 2, 4), (16, 2, 2, 4), (12, 3, 2, 4)]),
)
def test_every_expert_is_held_and_every_gpu_full(weight, sizes):
    slots, groups, nodes, gpus = sizes
    if 8 % groups:
        groups = 1
    found = rebalance([weight], slots, groups, nodes, gpus)
    assert found.copies.min() >= 1
    assert found.copies.sum() == slots
    share = np.array(weight) / found.copies[0]
    load = share[found.expert_of[0]].reshape(gpus, -1)
    if groups % nodes == 0:
        node_of = found.expert_of[0].reshape(nodes, -1)
        group = [set((row // (8 // groups)).tolist()) for row in node_of]
        assert not group[0] & group[1]
    else:
        assert share.max() == replica_counts([weight], slots)[0].__rtruediv__(weight).max()
    assert load.max() >= share.max()


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(0, 4))
def test_counts_minimise_the_largest_load_per_copy(weight, extra):
    counts = replica_counts([weight], len(weight) + extra)[0]
    best = min(
        max(w / c for w, c in zip(weight, c, strict=True))
        for c in product(range(1, extra + 2), repeat=len(weight))
        if sum(c) == len(weight) + extra
    )
    assert max(w / c for w, c in zip(weight, counts, strict=True)) == pytest.approx(best)


def test_packs_are_equally_full():
    pack, rank = pack_evenly(np.array([5.0, 4, 3, 3, 2, 1]), 3)
    assert np.bincount(pack).tolist() == [2, 2, 2]
    assert sorted(zip(pack, rank, strict=True)) == list(product(range(3), range(2)))
    assert np.bincount(pack, [5, 4, 3, 3, 2, 1]).tolist() == [6, 6, 6]


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(InputError, match="slots 9"):
        rebalance([[1] * 8], 9, 1, 1, 4)
    with pytest.raises(InputError, match="weight: "):
        rebalance([[1, float("nan")]], 2, 1, 1, 2)
