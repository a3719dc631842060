"""Even loads on servers at little cost in hops: swaps of experts, starting from the fewest hops."""

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InfeasibleError, InputError
from gpusched.moe.placement import ExpertPlacement

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def even_servers(
    placement: ExpertPlacement, trips: ArrayLike, load_ratio: float
) -> ExpertPlacement:
    """Return a placement in which no server's load in a layer exceeds ``load_ratio`` times the mean.

    Experts of the busiest server change places with lighter ones. A swap costs the difference of
    loads times the difference of hops, so per load moved it costs only the way to the other server:
    the nearest with room is taken, and there the swap that just suffices. Counts stay, so caps hold.
    A heuristic; the result keeps the bound without the ratio, and does not count moves.

    Raises:
        InputError: a ratio below 1.
        InfeasibleError: an expert alone is too heavy, or no further swap evens the busiest server out.
    """
    p = np.asarray(trips, np.float64)
    if not 1 <= load_ratio < np.inf:
        raise InputError(f"server_load_ratio: must be at least 1, got {load_ratio:g}")
    servers, weight = p.shape[1], placement.weight
    cap = load_ratio * float(weight[0].sum()) / servers
    if weight.max() > cap:
        heavy, item = np.unravel_index(int(weight.argmax()), weight.shape)
        raise InfeasibleError(
            f"expert {placement.expert_of[heavy, item]} of layer {heavy} alone carries "
            f"{weight.max() / cap * load_ratio:.2f} times a server's mean load, more than "
            f"server_load_ratio {load_ratio:g}; give it copies with replicas"
        )
    at = placement.at.copy()
    for layer in range(len(at)):
        _even_layer(layer, at[layer], weight[layer], placement.expert_of[layer], p[layer], cap)
    hops = float((np.take_along_axis(p, at, 1) * weight).sum())
    return replace(placement, at=at, hops=hops, objective=hops, moved=0, method="swaps")


def _even_layer(
    number: int, at: Ints, weight: Floats, expert_of: Ints, trips: Floats, cap: float
) -> None:
    load = np.asarray(np.bincount(at, weight, minlength=len(trips)), np.float64)
    limit = cap * (1 + 1e-12)
    for _ in range(20 * len(at)):
        busiest = int(load.argmax())
        if load[busiest] <= limit:
            return
        swap = _best_swap(busiest, at, weight, expert_of, trips, load, limit)
        if swap is None:
            break
        own, other = swap
        target, lighter = int(at[other]), weight[own] - weight[other]
        at[own], at[other] = target, busiest
        load[busiest] -= lighter
        load[target] += lighter
    raise InfeasibleError(
        f"layer {number}: no swap brings the busiest server below {load.max() / load.mean():.2f} times "
        "the mean; allow a larger server_load_ratio, give more replicas, or lower experts_per_layer"
    )


def _best_swap(
    busiest: int,
    at: Ints,
    weight: Floats,
    expert_of: Ints,
    trips: Floats,
    load: Floats,
    limit: float,
) -> tuple[int, int] | None:
    own = np.flatnonzero(at == busiest)
    excess = load[busiest] - limit
    best, most = None, 0.0
    for target in np.lexsort((load, trips)):
        if target == busiest or load[target] >= load[busiest]:
            continue
        theirs = np.flatnonzero(at == target)
        lighter = weight[own][:, None] - weight[theirs][None, :]
        lighter = np.where(
            np.isin(expert_of[own], expert_of[theirs])[:, None]
            | np.isin(expert_of[theirs], expert_of[own])[None, :],
            0.0,
            lighter,
        )
        fits = (lighter > 1e-12) & (load[target] + lighter <= limit)
        if fits.any():
            enough = fits & (lighter >= excess)
            score = (
                np.where(enough, -lighter, -np.inf)
                if enough.any()
                else np.where(fits, lighter, -np.inf)
            )
            i, j = np.unravel_index(int(score.argmax()), score.shape)
            return int(own[i]), int(theirs[j])
        # else the swap that leaves the busier of the two lowest
        fall = np.minimum(lighter, load[busiest] - load[target] - lighter)
        if fall.size and fall.max() > max(most, 1e-12):
            i, j = np.unravel_index(int(fall.argmax()), fall.shape)
            best, most = (int(own[i]), int(theirs[j])), float(fall.max())
    return best
