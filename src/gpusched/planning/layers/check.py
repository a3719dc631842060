"""An independent check of a placement and its flow: nothing here is shared with the planner."""

from collections.abc import Iterable, Mapping

TOLERANCE = 1e-6


def check_placement(
    *,
    layers: int,
    held: Mapping[str, tuple[int, int]],
    rates: Mapping[str, float],
    capacities: Mapping[tuple[str, str], float],
    flows: Mapping[tuple[str, str], float],
    front: str = "front",
    partial_inference: bool = False,
    cut: Iterable[str | tuple[str, str]] | None = None,
) -> list[str]:
    """Return what is wrong with a placement and its flow; nothing if all is well.

    Args:
        held: first layer and number of layers of each node.
        rates: tokens/s of each node with the layers it holds.
        capacities: tokens/s of each link.
        flows: tokens/s from place to place.
        cut: nodes and links whose capacity is said to equal the flow.
    """
    wrong: list[str] = []
    total = sum(flow for (origin, _), flow in flows.items() if origin == front)
    slack = TOLERANCE * max(total, 1.0)
    covered = [0] * layers
    for node, (first, count) in held.items():
        if first < 0 or count < 1 or first + count > layers:
            wrong.append(f"{node} holds layers {first} to {first + count - 1} of {layers}")
            continue
        for layer in range(first, first + count):
            covered[layer] += 1
    wrong += [f"no node holds layer {layer}" for layer, number in enumerate(covered) if not number]
    for (origin, to), flow in flows.items():
        if flow < -slack:
            wrong.append(f"{origin} to {to}: the flow {flow:g} is negative")
        if flow > capacities.get((origin, to), 0.0) + slack:
            wrong.append(f"{origin} to {to}: the flow {flow:g} exceeds the link")
        if flow > slack and not _joins(origin, to, held, layers, front, partial_inference):
            wrong.append(f"{origin} to {to}: these layers do not follow one another")
    for node in held:
        into = sum(flow for (_, to), flow in flows.items() if to == node)
        out = sum(flow for (origin, _), flow in flows.items() if origin == node)
        if abs(into - out) > slack:
            wrong.append(f"{node}: {into:g} tokens/s come and {out:g} leave")
        if into > rates[node] + slack:
            wrong.append(f"{node}: {into:g} tokens/s exceed its {rates[node]:g}")
    back = sum(flow for (_, to), flow in flows.items() if to == front)
    if abs(back - total) > slack:
        wrong.append(f"{total:g} tokens/s enter and {back:g} leave")
    if cut is not None:
        wrong += _check_cut(
            list(cut), total, slack, held, rates, capacities, layers, front, partial_inference
        )
    return wrong


def _joins(
    origin: str,
    to: str,
    held: Mapping[str, tuple[int, int]],
    layers: int,
    front: str,
    partial_inference: bool,
) -> bool:
    if origin == front:
        return to in held and held[to][0] == 0
    if origin not in held:
        return False
    end = sum(held[origin])
    if to == front:
        return end == layers
    if to not in held:
        return False
    if partial_inference:
        return held[to][0] <= end < sum(held[to])
    return held[to][0] == end


def _check_cut(
    cut: list[str | tuple[str, str]],
    total: float,
    slack: float,
    held: Mapping[str, tuple[int, int]],
    rates: Mapping[str, float],
    capacities: Mapping[tuple[str, str], float],
    layers: int,
    front: str,
    partial_inference: bool,
) -> list[str]:
    """Check that the cut's capacity is the flow, and that no pipeline avoids the cut."""
    value = sum(rates[part] if isinstance(part, str) else capacities[part] for part in cut)
    wrong = []
    if abs(value - total) > 10 * slack:
        wrong.append(f"the cut's capacity is {value:g}, the flow {total:g}")
    blocked = {part for part in cut if isinstance(part, str)}
    closed = {part for part in cut if not isinstance(part, str)}
    reached, todo = set(), [front]
    while todo:
        place = todo.pop()
        for (origin, to), capacity in capacities.items():
            if origin != place or capacity <= 0 or (origin, to) in closed:
                continue
            if not _joins(origin, to, held, layers, front, partial_inference):
                continue
            if to == front:
                return [*wrong, "a pipeline avoids the cut"]
            if to not in reached and to not in blocked:
                reached.add(to)
                todo.append(to)
    return wrong
