"""Bandwidth and latency between all places of a cluster, as matrices."""

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.cluster import Cluster

Floats = NDArray[np.float64]


def link_matrices(cluster: Cluster) -> tuple[Floats, Floats]:
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


def _members(cluster: Cluster, regions: NDArray[np.str_]) -> dict[str, NDArray[np.intp]]:
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
