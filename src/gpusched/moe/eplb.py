"""Replicas of experts that even out load: the policy of DeepSeek's EPLB, after its description."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.moe.loads import check_loads

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Rebalanced(NamedTuple):
    """Which expert each slot holds."""

    expert_of: Ints
    """Shape (layers, slots); GPU g holds slots g R / gpus to (g + 1) R / gpus."""
    copies: Ints
    """Shape (layers, experts)."""
    slots_of: Ints
    """Slots of each expert's copies, padded with -1, shape (layers, experts, most copies)."""


def pack_evenly(weight: Floats, packs: int) -> tuple[Ints, Ints]:
    """Return the pack of each item and its rank there: heaviest first, each to the lightest pack
    with room, equally many to every pack."""
    room = len(weight) // packs
    if room == 1:
        return np.arange(len(weight)), np.zeros(len(weight), np.int64)
    pack, rank = np.empty(len(weight), np.int64), np.empty(len(weight), np.int64)
    load, count = np.zeros(packs), np.zeros(packs, np.int64)
    for item in np.argsort(-weight, kind="stable"):
        lightest = int(np.where(count < room, load, np.inf).argmin())
        pack[item], rank[item] = lightest, count[lightest]
        load[lightest] += weight[item]
        count[lightest] += 1
    return pack, rank


def replica_counts(weight: ArrayLike, slots: int, most: int | None = None) -> Ints:
    """Return the copies of each expert, shape (layers, experts): one each, and further ones to the
    expert with most load per copy. No other counts have a smaller largest load per copy, with at
    most ``most`` copies of an expert.

    Raises:
        InputError: more slots than copies that may be made.
    """
    w = check_loads(weight)
    if most is not None and slots > most * w.shape[1]:
        raise InputError(
            f"replicas: {slots - w.shape[1]} are too many for {w.shape[1]} experts with at most "
            f"{most} copies each"
        )
    copies = np.ones(w.shape, np.int64)
    layer = np.arange(len(w))
    for _ in range(slots - w.shape[1]):
        share = w / copies if most is None else np.where(copies < most, w / copies, -1.0)
        copies[layer, share.argmax(axis=1)] += 1
    return copies


def _replicate(weight: Floats, slots: int) -> Ints:
    """Return the expert of each slot: the experts in order, then the added copies as they come."""
    experts = len(weight)
    expert_of = np.arange(slots)
    copies = np.ones(experts, np.int64)
    for slot in range(experts, slots):
        expert_of[slot] = (weight / copies).argmax()
        copies[expert_of[slot]] += 1
    return expert_of


def rebalance(weight: ArrayLike, slots: int, groups: int, nodes: int, gpus: int) -> Rebalanced:
    """Return which expert each of ``slots`` slots holds, given loads of shape (layers, experts).

    Where ``nodes`` divides ``groups`` (of experts that a token's routing is limited to), groups are
    packed on nodes, experts replicated inside each node and copies packed on its GPUs; else experts
    are replicated and packed over all GPUs at once.

    Raises:
        InputError: sizes that do not divide, or fewer slots than experts.
    """
    w = check_loads(weight, name="weight")
    layers, experts = w.shape
    if slots < experts or slots % gpus or gpus % nodes or experts % groups:
        raise InputError(
            f"slots {slots} must be at least the {experts} experts and a multiple of gpus {gpus}, "
            f"gpus a multiple of nodes {nodes}, experts a multiple of groups {groups}"
        )
    if groups % nodes:
        groups, nodes = 1, 1
    expert_of = np.stack([_layer(row, slots, groups, nodes, gpus) for row in w])
    copies = np.stack([np.bincount(row, minlength=experts) for row in expert_of])
    slots_of = np.full((layers, experts, int(copies.max())), -1, np.int64)
    for layer in range(layers):
        seen = np.zeros(experts, np.int64)
        for slot, expert in enumerate(expert_of[layer]):
            slots_of[layer, expert, seen[expert]] = slot
            seen[expert] += 1
    return Rebalanced(expert_of, copies, slots_of)


def _layer(weight: Floats, slots: int, groups: int, nodes: int, gpus: int) -> Ints:
    experts, size = len(weight), len(weight) // groups
    node, rank = pack_evenly(weight.reshape(groups, size).sum(axis=1), nodes)
    place = (node * (groups // nodes) + rank)[:, None] * size + np.arange(size)
    by_node = np.empty(experts, np.int64)
    by_node[place.ravel()] = np.arange(experts)
    result = []
    for own in by_node.reshape(nodes, experts // nodes):
        copy_of = _replicate(weight[own], slots // nodes)
        copies = np.bincount(copy_of)
        gpu, at = pack_evenly((weight[own] / copies)[copy_of], gpus // nodes)
        held = np.empty(len(copy_of), np.int64)
        held[gpu * (slots // gpus) + at] = own[copy_of]
        result.append(held)
    return np.concatenate(result)
