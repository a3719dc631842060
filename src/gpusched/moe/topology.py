"""Networks between servers, and how many links lie between any two of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree, shortest_path

from gpusched.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Topology:
    """An undirected graph whose first ``servers`` nodes are servers and the rest switches."""

    name: str
    servers: int
    nodes: int
    links: Ints
    """Shape (links, 2)."""

    def hops(self) -> Ints:
        """Return the fewest links between each two servers, shape (servers, servers).

        Raises:
            InputError: two servers are not joined.
        """
        ends = np.concatenate([self.links, self.links[:, ::-1]])
        graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (self.nodes,) * 2)
        distance = shortest_path(graph.tocsr(), unweighted=True, indices=np.arange(self.servers))[
            :, : self.servers
        ]
        if np.isinf(distance).any():
            a, b = np.argwhere(np.isinf(distance))[0]
            raise InputError(f"topology: no path between servers {a} and {b}")
        return distance.astype(np.int64)

    def sparse(self, removed: float, seed: int = 0) -> "Topology":
        """Return the network without a random share of the links between switches, still connected.

        Raises:
            InputError: ``removed`` is no share.
        """
        if not 0 <= removed < 1:
            raise InputError(f"removed: must lie in [0, 1), got {removed:g}")
        between = (self.links >= self.servers).all(axis=1)
        rng = np.random.default_rng(seed)
        rank = rng.permutation(len(self.links)) + 1.0
        rank[~between] = 0.5  # kept before any other
        size = (self.nodes, self.nodes)
        tree = minimum_spanning_tree(
            coo_array((rank, (self.links[:, 0], self.links[:, 1])), size).tocsr()
        ).tocoo()
        needed = set(zip(tree.row.tolist(), tree.col.tolist(), strict=True))
        needed |= {(b, a) for a, b in needed}
        spare = [
            int(i)
            for i in np.flatnonzero(between)
            if (int(self.links[i, 0]), int(self.links[i, 1])) not in needed
        ]
        rng.shuffle(spare)
        gone = spare[: round(removed * int(between.sum()))]
        kept = np.delete(self.links, gone, axis=0)
        return Topology(f"sparse {self.name}", self.servers, self.nodes, kept)


def leaf_spine(leaves: int, servers_per_leaf: int, spines: int = 4) -> Topology:
    """Return two tiers: every leaf is joined to every spine; 2 hops in a leaf, 4 across."""
    servers = leaves * servers_per_leaf
    leaf = servers + np.arange(leaves)
    spine = servers + leaves + np.arange(spines)
    down = np.stack([np.arange(servers), leaf[np.arange(servers) // servers_per_leaf]], axis=1)
    up = np.stack([np.repeat(leaf, spines), np.tile(spine, leaves)], axis=1)
    links = np.concatenate([down, up])
    return Topology("leaf-spine", servers, servers + leaves + spines, links)


def fat_tree(ports: int, servers: int | None = None) -> Topology:
    """Return three tiers of switches with ``ports`` ports each, in as many pods, for up to
    ports^3 / 4 servers: 2 hops in an edge switch, 4 in a pod, 6 across."""
    if ports < 2 or ports % 2:
        raise InputError(f"ports: must be even and at least 2, got {ports}")
    half, most = ports // 2, ports**3 // 4
    servers = most if servers is None else servers
    if not 1 <= servers <= most:
        raise InputError(f"servers: a fat tree of {ports} ports joins 1 to {most}, got {servers}")
    edge = servers + np.arange(ports * half).reshape(ports, half)
    middle = servers + ports * half + np.arange(ports * half).reshape(ports, half)
    core = servers + 2 * ports * half + np.arange(half * half).reshape(half, half)
    links = [(s, int(edge.ravel()[s // half])) for s in range(servers)]
    for pod in range(ports):
        links += [(int(e), int(m)) for e in edge[pod] for m in middle[pod]]
        links += [(int(middle[pod, i]), int(c)) for i in range(half) for c in core[i]]
    nodes = servers + 2 * ports * half + half * half
    return Topology("fat-tree", servers, nodes, np.array(links, np.int64))


def dragonfly(groups: int, routers: int, servers_per_router: int) -> Topology:
    """Return groups of fully joined routers with one link between any two groups, spread evenly
    over their routers: 2 hops at a router, 3 in a group, at most 5 across."""
    at = (
        np.arange(groups * routers).reshape(groups, routers) + groups * routers * servers_per_router
    )
    servers = at.size * servers_per_router
    links = [(s, int(at.ravel()[s // servers_per_router])) for s in range(servers)]
    for group in range(groups):
        links += [(int(at[group, a]), int(at[group, b])) for a in range(routers) for b in range(a)]
    for a in range(groups):
        for b in range(a + 1, groups):
            # the router of each group whose turn it is among the group's global links
            links.append((int(at[a, (b - 1) % routers]), int(at[b, a % routers])))
    return Topology("dragonfly", servers, servers + at.size, np.array(links, np.int64))


def from_links(servers: Sequence[str], links: Sequence[tuple[str, str]]) -> Topology:
    """Return the network of named servers; what else the links name is a switch.

    Raises:
        InputError: no servers, a name twice, or a server without a way to another.
    """
    if not servers or len(set(servers)) < len(servers):
        raise InputError("topology.servers: give at least one name, each once")
    names = list(dict.fromkeys([*servers, *(end for link in links for end in link)]))
    number = {name: index for index, name in enumerate(names)}
    ends = np.array([[number[a], number[b]] for a, b in links], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (len(names),) * 2)
    _, part = connected_components(graph, directed=False)
    for server in range(1, len(servers)):
        if part[server] != part[0]:
            raise InputError(f"topology.links: no path between {servers[0]} and {servers[server]}")
    return Topology("links", len(servers), len(names), ends)
