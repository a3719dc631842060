"""The token flow that a placement of layers carries."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.solve.flow import max_flow
from gpusched.timing.machines import Machines, Placement

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Network:
    """Capacities of a fleet in tokens/s."""

    machines: Machines
    tables: tuple[Floats, ...]
    """Tokens/s of each kind holding 1, 2, ... layers."""
    links: Floats
    """Tokens/s between places, shape (n + 1, n + 1), the front last; 0 on the diagonal."""

    @property
    def n(self) -> int:
        """Nodes."""
        return len(self.machines.names)

    @property
    def most(self) -> NDArray[np.int64]:
        """Most layers of each node, shape (n,)."""
        return np.array([len(self.tables[k]) for k in self.machines.kind_of], np.int64)

    def rates(self, count: NDArray[np.int64]) -> Floats:
        """Tokens/s of the nodes holding ``count`` layers, shape (n,)."""
        tables = self.tables
        rates: Floats = np.array(
            [
                tables[kind][k - 1] if k else 0.0
                for kind, k in zip(self.machines.kind_of, count, strict=True)
            ]
        )
        return rates

    def table(self, node: int) -> Floats:
        """Tokens/s of a node holding 1, 2, ... layers."""
        return self.tables[int(self.machines.kind_of[node])]


@dataclass(frozen=True)
class Flow:
    """A maximum flow of tokens from the front through all layers and back."""

    tokens_per_s: float
    flows: Floats
    """Between places, shape (n + 1, n + 1), the front last."""
    cut_nodes: tuple[int, ...]
    """Nodes whose capacity limits the flow."""
    cut_links: tuple[tuple[int, int], ...]
    """Links that do."""
    cut: float
    """Their capacity in all; equals the flow."""


def network_of(machines: Machines, tables: tuple[Floats, ...]) -> Network:
    """Return a fleet's capacities: ids of tokens on the front's links, activations on the others."""
    n = len(machines.names)
    size = np.full((n + 1, n + 1), machines.activation_bytes)
    size[n, :] = size[:, n] = machines.token_bytes
    links = machines.bandwidth_bytes_per_s / size
    np.fill_diagonal(links, 0.0)
    return Network(machines, tables, links)


def open_links(network: Network, placement: Placement, *, partial_inference: bool = False) -> Flags:
    """Tell which links join consecutive layers, shape (n + 1, n + 1). With partial inference a node
    may take over in the middle of its layers."""
    n, used = network.n, placement.count > 0
    first, end = placement.first, placement.first + placement.count
    edges = np.zeros((n + 1, n + 1), np.bool_)
    edges[n, :n] = used & (first == 0)
    edges[:n, n] = used & (end == network.machines.layers)
    follows = first[None, :] == end[:, None]
    if partial_inference:
        follows = (first[None, :] <= end[:, None]) & (end[:, None] < end[None, :])
    edges[:n, :n] = follows & used[:, None] & used[None, :]
    return edges & (network.links > 0)


def solve_flow(
    network: Network,
    placement: Placement,
    *,
    partial_inference: bool = False,
    alive: Flags | None = None,
) -> Flow:
    """Return a maximum flow over the expanded graph: an arc inside each node, one for each link."""
    n = network.n
    rates = network.rates(placement.count)
    if alive is not None:
        rates = np.where(alive, rates, 0.0)
    origin, to = np.nonzero(open_links(network, placement, partial_inference=partial_inference))
    # node i enters at i and leaves at n + i; the front is source 2n and sink 2n + 1
    tails = np.concatenate((np.arange(n), np.where(origin == n, 2 * n, n + origin)))
    heads = np.concatenate((n + np.arange(n), np.where(to == n, 2 * n + 1, to)))
    # twice what all nodes carry never limits
    links = np.minimum(network.links[origin, to], 2 * rates.sum() + 1)
    capacities = np.concatenate((rates, links))
    found = max_flow(2 * n + 2, tails, heads, capacities, source=2 * n, sink=2 * n + 1)
    flows = np.zeros((n + 1, n + 1))
    flows[origin, to] = found.flow[n:]
    crossing = found.source_side[tails] & ~found.source_side[heads]
    cut_links = [
        (int(i), int(j)) for i, j in zip(origin[crossing[n:]], to[crossing[n:]], strict=True)
    ]
    return Flow(
        found.value, flows, tuple(map(int, np.flatnonzero(crossing[:n] & (placement.count > 0)))),
        tuple(cut_links), float(capacities[crossing].sum()),
    )  # fmt: skip


def reroute(
    network: Network, placement: Placement, alive: Flags, *, partial_inference: bool = False
) -> Floats:
    """Return new flows where only some nodes are up, shape (n + 1, n + 1); zero if no pipeline is
    left."""
    return solve_flow(network, placement, partial_inference=partial_inference, alive=alive).flows
