"""Communities of a weighted graph by seeded Louvain runs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.review.graph import Graph

RUNS = 20
Partition = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Communities:
    """The best partition of several runs."""

    members: Partition
    """Papers of each community, both sorted."""
    modularity: float
    agreeing: int
    """Runs that found this very partition."""
    runs: int


def find_communities(graph: Graph, seed: int = 0, runs: int = RUNS) -> Communities:
    """Return the partition of largest modularity among Louvain runs from different seeds.

    Ties go to the first in order, so that the answer depends on the graph and the seed alone.

    Raises:
        InputError: networkx is not installed.
    """
    try:
        import networkx
    except ImportError:
        raise InputError("fronts need networkx: pip install 'gpusched[review]'") from None
    tied = networkx.Graph()
    tied.add_nodes_from(range(len(graph.papers)))
    rows, columns = np.nonzero(np.triu(graph.weights))
    tied.add_weighted_edges_from(
        (int(i), int(j), float(graph.weights[i, j])) for i, j in zip(rows, columns, strict=True)
    )
    found: list[Partition] = []
    for run in range(runs):
        parts = networkx.community.louvain_communities(tied, weight="weight", seed=seed + run)
        found.append(tuple(sorted(tuple(sorted(part)) for part in parts)))
    best = max(sorted(set(found)), key=lambda part: round(modularity(graph.weights, part), 9))
    return Communities(best, modularity(graph.weights, best), found.count(best), runs)


def modularity(weights: NDArray[np.float64], members: Partition) -> float:
    """Return Newman's modularity of a partition; 0 without any tie."""
    total = float(weights.sum())
    if total == 0.0:
        return 0.0
    strength = weights.sum(axis=1)
    inside = sum(float(weights[np.ix_(part, part)].sum()) for part in members)
    expected = sum(float(strength[list(part)].sum()) ** 2 for part in members) / total
    return (inside - expected) / total
