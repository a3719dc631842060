import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.moe.topology import dragonfly, fat_tree, from_links, leaf_spine


def test_leaf_spine_is_two_in_a_leaf_and_four_across():
    d = leaf_spine(3, 2).hops()
    leaf = np.arange(6) // 2
    expected = np.where(leaf[:, None] == leaf, 2, 4)
    np.fill_diagonal(expected, 0)
    assert (d == expected).all()


def test_fat_tree_is_two_four_and_six():
    d = fat_tree(4).hops()
    edge, pod = np.arange(16) // 2, np.arange(16) // 4
    expected = np.where(pod[:, None] == pod, 4, 6)
    expected[edge[:, None] == edge] = 2
    np.fill_diagonal(expected, 0)
    assert (d == expected).all()


def test_dragonfly_is_two_three_and_at_most_five():
    d = dragonfly(5, 4, 2).hops()
    router, group = np.arange(40) // 2, np.arange(40) // 8
    same_router, same_group = router[:, None] == router, group[:, None] == group
    off = ~np.eye(40, dtype=bool)
    assert (d[same_router & off] == 2).all()
    assert (d[same_group & ~same_router] == 3).all()
    assert d[~same_group].min() >= 3
    assert d.max() == 5


@given(
    st.sampled_from([leaf_spine(4, 2), fat_tree(4), dragonfly(4, 3, 2)]),
    st.floats(0, 0.95),
    st.integers(0, 5),
)
def test_fewer_links_never_shorten_a_way_and_keep_servers_joined(topology, removed, seed):
    sparse = topology.sparse(removed, seed)
    assert (sparse.hops() >= topology.hops()).all()
    between = int((topology.links >= topology.servers).all(axis=1).sum())
    gone = len(topology.links) - len(sparse.links)
    assert gone <= round(removed * between)


def test_named_links():
    d = from_links(["a", "b", "c"], [("a", "x"), ("b", "x"), ("x", "y"), ("y", "c")]).hops()
    assert d.tolist() == [[0, 2, 3], [2, 0, 3], [3, 3, 0]]


def test_bad_networks_are_named():
    with pytest.raises(InputError, match="no path between a and b"):
        from_links(["a", "b"], [("a", "x")])
    with pytest.raises(InputError, match="each once"):
        from_links(["a", "a"], [])
    with pytest.raises(InputError, match="ports"):
        fat_tree(3)
    with pytest.raises(InputError, match="servers"):
        fat_tree(4, 17)
    with pytest.raises(InputError, match="removed"):
        leaf_spine(2, 2).sparse(1.0)
