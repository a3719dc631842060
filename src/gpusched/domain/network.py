"""What joins the nodes: bandwidth and latency within regions, between them, and on single links."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gpusched.domain.document import Section

if TYPE_CHECKING:
    from gpusched.domain.cluster import Cluster

Floats = NDArray[np.float64]


class Link(Section):
    """What joins two places, in both directions. A place is a node, a group of nodes or a region."""

    ends: tuple[str, str]
    gbps: float | None = Field(default=None, ge=0, le=1e6)
    """Gigabits a second; 0 cuts the link."""
    latency_ms: float | None = Field(default=None, ge=0, le=1e5)
    """One way."""


class Network(Section):
    """Bandwidth and latency between nodes. What ``links`` says of two places goes before the rest;
    later links go before earlier ones."""

    gbps: float | None = Field(default=None, gt=0, le=1e6)
    """Between two nodes of one region; the cluster's ``inter_node_gbps`` or the NICs if not given."""
    latency_ms: float = Field(default=0.1, ge=0, le=1e5)
    """Between two nodes of one region, one way."""
    regions_gbps: float = Field(default=1.0, ge=0, le=1e6)
    """Between two nodes of different regions."""
    regions_latency_ms: float = Field(default=50.0, ge=0, le=1e5)
    """Between two nodes of different regions, one way."""
    front: str | None = None
    """Region where requests enter and answers leave; that of the first group if not given."""
    links: tuple[Link, ...] = Field(default=(), max_length=100_000)


def link_matrices(cluster: "Cluster") -> tuple[Floats, Floats]:
    """Return bandwidth (bytes/s) and one-way latency (s) between the places of a cluster, both of
    shape (nodes + 1, nodes + 1): the nodes as ``Cluster.node_names`` lists them, then the front."""
    network = cluster.network
    groups = [index for index, group in enumerate(cluster.nodes) for _ in range(group.count)]
    front = network.front or cluster.nodes[0].region
    regions = np.array([cluster.nodes[index].region for index in groups] + [front])
    together = regions[:, None] == regions[None, :]
    within = np.array(
        [
            cluster.inter_node_bytes_per_s(index) * cluster.nodes[index].gpus_per_node
            for index in groups
        ]
        + [np.inf]
    )
    if network.gbps is not None:
        within[:] = network.gbps * 1e9 / 8
    local = np.minimum(within[:, None], within[None, :])
    bandwidth = np.where(together, local, np.minimum(local, network.regions_gbps * 1e9 / 8))
    latency = np.where(together, network.latency_ms, network.regions_latency_ms) / 1e3
    members = _members(cluster, regions)
    for link in network.links:
        first, second = (members[end] for end in link.ends)
        for rows, columns in ((first, second), (second, first)):
            at = np.ix_(rows, columns)
            if link.gbps is not None:
                bandwidth[at] = link.gbps * 1e9 / 8
            if link.latency_ms is not None:
                latency[at] = link.latency_ms / 1e3
    np.fill_diagonal(bandwidth, np.inf)
    np.fill_diagonal(latency, 0.0)
    return bandwidth, latency


def places(cluster: "Cluster") -> dict[str, str]:
    """Return what a link may name, and what it is: region, group of nodes, node, or the front."""
    known = {group.region: "region" for group in cluster.nodes}
    known |= {cluster.group_name(index): "group" for index in range(len(cluster.nodes))}
    known |= dict.fromkeys(cluster.node_names, "node")
    return known | {"front": "front"}


def _members(cluster: "Cluster", regions: NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
    names = cluster.node_names
    groups = [
        cluster.group_name(index)
        for index, group in enumerate(cluster.nodes)
        for _ in range(group.count)
    ]
    found = {str(region): np.flatnonzero(regions == region) for region in np.unique(regions)}
    for name in dict.fromkeys(groups):
        found[name] = np.flatnonzero(np.array(groups) == name)
    found |= {name: np.array([index]) for index, name in enumerate(names)}
    return found | {"front": np.array([len(names)])}
