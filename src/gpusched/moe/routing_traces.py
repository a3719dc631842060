"""Counts of expert choices over steps: generated with hotspots that move, or measured routes replayed.

A trace has shape (steps, experts, ranks): choices of each expert by the tokens that each rank holds.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]


def moving_hotspots(
    steps: int,
    experts: int,
    ranks: int,
    *,
    tokens_per_rank: int,
    top_k: int,
    concentration: float = 1.5,
    hot_experts: int = 4,
    hot_share: float = 0.25,
    period: int = 32,
    drift: float = 0.0,
    locality: float = 0.0,
    seed: int = 0,
) -> Floats:
    """Return counts of a popularity that is Dirichlet with hotspots on top.

    ``hot_share`` of all choices fall on ``hot_experts`` experts, chosen anew every ``period`` steps;
    ``drift`` mixes that share of a fresh draw into the rest at every step; ``locality`` is the share
    of a popularity of its own in each rank. Each rank draws ``tokens_per_rank * top_k`` choices.

    Raises:
        InputError: a share outside [0, 1], or a size below 1.
    """
    for name, share in (("hot_share", hot_share), ("drift", drift), ("locality", locality)):
        if not 0 <= share <= 1:
            raise InputError(f"{name}: must lie in [0, 1], got {share:g}")
    sizes = {
        "steps": steps, "ranks": ranks, "tokens_per_rank": tokens_per_rank, "top_k": top_k,
        "hot_experts": hot_experts, "period": period,
    }  # fmt: skip
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name}: must be at least 1, got {size}")
    if max(hot_experts, top_k) > experts:
        raise InputError(f"experts: {experts} is fewer than hot_experts or top_k")
    if not 0 < concentration < np.inf:
        raise InputError(f"concentration: must be a positive number, got {concentration:g}")
    rng = np.random.default_rng(seed)
    alpha = np.full(experts, concentration)
    shared, own = rng.dirichlet(alpha), rng.dirichlet(alpha, ranks)
    hot = np.zeros(experts)
    counts = np.empty((steps, experts, ranks))
    for step in range(steps):
        if step % period == 0:
            hot[:] = 0.0
            hot[rng.choice(experts, hot_experts, replace=False)] = 1.0 / hot_experts
        if drift:
            shared = (1 - drift) * shared + drift * rng.dirichlet(alpha)
        rest = (1 - locality) * shared + locality * own
        popularity = (1 - hot_share) * rest + hot_share * hot
        counts[step] = rng.multinomial(tokens_per_rank * top_k, popularity).T
    return counts


def replayed_routes(
    path: str | Path,
    layer: int,
    ranks: int,
    *,
    tokens_per_rank: int,
    steps: int,
    tasks: tuple[str, ...],
    experts: int = 64,
    shift_at: int | None = None,
    seed: int = 0,
) -> Floats:
    """Return counts of measured routes in one layer: every step each rank takes consecutive tokens of
    sequences drawn from ``tasks``.

    With ``shift_at``, steps before it draw from the first task and the rest from the second.

    Raises:
        InputError: the table is not there, or lacks the layer or a task.
    """
    routes = {task: routes_of(path, layer, task) for task in tasks}
    rng = np.random.default_rng(seed)
    counts = np.zeros((steps, experts, ranks))
    for rank in range(ranks):
        for step in range(steps):
            if shift_at is None:
                task = tasks[int(rng.integers(len(tasks)))]
            else:
                task = tasks[0 if step < shift_at else 1]
            rows = routes[task]
            start = int(rng.integers(len(rows)))
            taken = rows[(start + np.arange(tokens_per_rank)) % len(rows)]
            counts[step, :, rank] = np.bincount(taken.ravel(), minlength=experts)
    return counts


def routes_of(path: str | Path, layer: int, task: str) -> NDArray[np.int64]:
    """Return the experts chosen by each token of a task in a layer, in order, shape (tokens, top_k),
    from a table with columns ``task, layer, seq, pos, e0, e1, ...``.

    Raises:
        InputError: the table is not there, or lacks the layer or the task.
    """
    import pyarrow.compute as pc
    from pyarrow import parquet

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    table = parquet.read_table(path, filters=(pc.field("layer") == layer))
    table = table.filter(pc.equal(table["task"].cast("string"), task))
    if not len(table):
        raise InputError(f"{path}: no rows of task {task!r} in layer {layer}")
    table = table.sort_by([("seq", "ascending"), ("pos", "ascending")])
    names = [name for name in table.column_names if name[0] == "e" and name[1:].isdigit()]
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.int64)
