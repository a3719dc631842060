"""How strongly papers are tied: by what they cite, use and address together.

Papers and items (references, methods, problems) form a bipartite graph. Its projection on the
papers counts a shared item as ``1 / (k - 1)`` where ``k`` papers have it, so that every item gives
each of its papers the same total of one whatever its popularity (M. Newman, "Scientific
collaboration networks II", 2001, equation 2).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.review.paper import Paper


@dataclass(frozen=True)
class Weights:
    """How much a kind of shared items counts, and from where a tie counts as an edge."""

    references: float = 1.0
    methods: float = 1.0
    problems: float = 1.0
    edge: float = 0.5
    """Half an item that no third paper has, or a whole one that two others share."""


@dataclass(frozen=True)
class Graph:
    """Ties between papers."""

    papers: tuple[Paper, ...]
    weights: NDArray[np.float64]
    """Symmetric, zero on the diagonal; shape (papers, papers)."""
    edge: float

    @property
    def edges(self) -> NDArray[np.bool_]:
        """Which pairs are tied strongly enough to count; shape (papers, papers)."""
        edges: NDArray[np.bool_] = self.weights >= self.edge
        np.fill_diagonal(edges, False)
        return edges

    def density(self, members: Sequence[int]) -> float:
        """Return edges present over edges possible among papers; 1 for a single paper."""
        possible = len(members) * (len(members) - 1)
        if not possible:
            return 1.0
        return float(self.edges[np.ix_(members, members)].sum()) / possible


def build_graph(papers: Sequence[Paper], weights: Weights = Weights()) -> Graph:
    """Return the graph of papers.

    References are often known in part only and long where they are known, so their ties are
    divided by the square root of the product of both counts (bibliographic coupling with Salton's
    normalisation); a paper counts as one of its own references, so that citing it ties too.
    """
    cited = [{*p.references, p.arxiv, *([p.openalex] if p.openalex else [])} for p in papers]
    sizes = np.sqrt([max(len(p.references), 1) + 1.0 for p in papers])
    total = (
        weights.references * _shared(cited) / np.outer(sizes, sizes)
        + weights.methods * _shared([set(p.methods) for p in papers])
        + weights.problems * _shared([set(p.problems) for p in papers])
    )
    return Graph(tuple(papers), total, weights.edge)


def _shared(items: Sequence[set[str]]) -> NDArray[np.float64]:
    """Return Newman's weights of the projection; shape (papers, papers)."""
    holders = Counter(item for own in items for item in own)
    shared = sorted(item for item, count in holders.items() if count > 1)
    column = {item: j for j, item in enumerate(shared)}
    has = np.zeros((len(items), len(shared)))
    for i, own in enumerate(items):
        for item in own:
            if item in column:
                has[i, column[item]] = 1.0
    counts = np.array([holders[item] for item in shared], dtype=float)
    ties: NDArray[np.float64] = (has / np.maximum(counts - 1, 1)) @ has.T
    np.fill_diagonal(ties, 0.0)
    return ties
