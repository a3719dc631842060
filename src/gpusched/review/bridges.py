"""Papers whose ties spread over several fronts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpusched.review.graph import Graph

LEAST_SCORE = 0.5


@dataclass(frozen=True)
class Bridge:
    """A paper between fronts."""

    arxiv: str
    score: float
    """Participation coefficient, 0 to 1."""
    front: int
    joins: tuple[int, ...]
    """Other fronts, strongest tie first; those with at least a tenth of the paper's weight."""
    carries: float
    """Share of all weight between its front and the first of those that runs through it."""


def participation(graph: Graph, labels: Sequence[int]) -> list[float]:
    """Return each paper's participation coefficient.

    ``1 - sum over fronts of (weight to the front / weight in all)^2`` (R. Guimerà, L. Amaral,
    2005): 0 where all ties stay in one front, near 1 where they are spread evenly.

    Args:
        graph: the papers.
        labels: front of each paper; shape (papers,).
    """
    fronts = sorted(set(labels))
    belongs = np.array([[label == front for front in fronts] for label in labels], dtype=float)
    to_fronts = graph.weights @ belongs
    total = to_fronts.sum(axis=1, keepdims=True)
    shares = np.divide(to_fronts, total, out=np.zeros_like(to_fronts), where=total > 0)
    return [float(1 - row @ row) if row.any() else 0.0 for row in shares]


def find_bridges(graph: Graph, labels: Sequence[int], least: float = LEAST_SCORE) -> list[Bridge]:
    """Return the papers with a participation coefficient of at least ``least``, highest first."""
    numbers = np.array(labels)
    bridges = []
    for i, score in enumerate(participation(graph, labels)):
        own = numbers[i]
        ties = {
            int(front): float(graph.weights[i, numbers == front].sum())
            for front in sorted(set(labels) - {own})
        }
        floor = 0.1 * float(graph.weights[i].sum())
        joins = sorted((f for f, w in ties.items() if w >= floor > 0), key=lambda f: (-ties[f], f))
        if score < least or not joins:
            continue
        between = float(graph.weights[np.ix_(numbers == own, numbers == joins[0])].sum())
        bridges.append(
            Bridge(graph.papers[i].arxiv, score, int(own), tuple(joins), ties[joins[0]] / between)
        )
    return sorted(bridges, key=lambda b: (-b.score, b.arxiv))
