"""Workers in nodes: none straddles two (A-8)."""

from itertools import product

import numpy as np
from numpy.typing import NDArray

from gpusched.solve.milp import Program

Ints = NDArray[np.int64]


def nested(sizes: Ints, per_node: int) -> bool:
    """Tell whether each size divides the next larger and the largest a node.

    Such workers fit whenever their GPUs do, filled in from the largest; powers of two are such. All
    do where GPUs are linked alike (``per_node`` 0).
    """
    return per_node == 0 or divisible(np.append(sizes, per_node))


def divisible(sizes: Ints) -> bool:
    """Tell whether each size divides the next larger one."""
    chain = np.unique(sizes)
    return bool((chain[1:] % chain[:-1] == 0).all())


def node_patterns(sizes: Ints, per_node: int) -> Ints:
    """Return the ways to fill a node to which no worker can be added, shape (patterns, kinds)."""
    ranges = [range(per_node // int(n) + 1) for n in sizes]
    fits = [mix for mix in product(*ranges) if sizes @ np.array(mix) <= per_node]
    room = per_node - np.array([sizes @ np.array(mix) for mix in fits])
    return np.array([m for m, r in zip(fits, room, strict=True) if r < sizes.min()], np.int64)


def fit_nodes(workers: Ints, sizes: Ints, per_node: int, nodes: int) -> bool:
    """Tell whether so many workers of each size fit into the nodes."""
    if int(workers @ sizes) > per_node * nodes or (sizes[workers > 0] > per_node).any():
        return False
    if nested(sizes[workers > 0], per_node):
        return True
    patterns = node_patterns(sizes, per_node)
    program = Program()
    used = program.variables(len(patterns), cost=1.0, integer=True)
    for kind, count in enumerate(workers):
        program.row(used, patterns[:, kind], lower=float(count))
    return program.solve().objective <= nodes + 1e-6
