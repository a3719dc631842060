"""Which places a pipeline may go on to, and the bandwidth each link then has."""

import numpy as np
from numpy.typing import NDArray

from gpusched.timing.machines import Machines, Placement

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def compatible(machines: Machines, placement: Placement, *, partial_inference: bool) -> Flags:
    """Tell where activations may go: from the front to nodes with layer 0, from nodes with the last
    layer to the front, and to nodes that begin where the one before ends, or under partial
    inference hold that layer and later ones. Shape (n + 1, n + 1)."""
    n = len(machines.names)
    used = placement.count > 0
    first = placement.first
    end = np.where(used, first + placement.count, -1)
    edges = np.zeros((n + 1, n + 1), np.bool_)
    edges[n, :n] = used & (first == 0)
    edges[:n, n] = used & (end == machines.layers)
    if partial_inference:
        follows = (first[None, :] <= end[:, None]) & (end[:, None] < end[None, :])
    else:
        follows = first[None, :] == end[:, None]
    edges[:n, :n] = follows & used[:, None] & used[None, :]
    return edges & (machines.bandwidth_bytes_per_s > 0)


def without_dead_ends(edges: Flags, up: Flags) -> Flags:
    """Drop edges of nodes that are down, that nothing reaches, or that lead nowhere; ``up`` has
    shape (n,)."""
    edges = edges.copy()
    edges[:-1][~up] = False
    edges[:, :-1][:, ~up] = False
    while True:
        good = np.append(edges[:, :-1].any(axis=0) & edges[:-1].any(axis=1), True)
        kept = edges & good[:, None] & good[None, :]
        if np.array_equal(kept, edges):
            return edges
        edges = kept


def link_shares(machines: Machines, edges: Flags, flows: Floats | None) -> Floats:
    """Return the bytes/s that each edge gets: the link's bandwidth or, if less, its share of the
    sender's or the receiver's NIC, which is its share of the flow there. Without flows a sender
    divides its NIC evenly. Shape (n + 1, n + 1)."""
    nic = np.array([machines.kinds[k].nic_bytes_per_s for k in machines.kind_of] + [np.inf])
    weights = edges.astype(np.float64) if flows is None else np.where(edges, flows, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        sent = np.where(weights > 0, weights / weights.sum(axis=1, keepdims=True), 1.0)
        received = np.where(weights > 0, weights / weights.sum(axis=0, keepdims=True), 1.0)
    limit = np.minimum(machines.bandwidth_bytes_per_s, sent * nic[:, None])
    if flows is None:
        return np.asarray(limit)
    return np.asarray(np.minimum(limit, received * nic[None, :]))
