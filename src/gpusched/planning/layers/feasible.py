"""Whether nodes and links can hold and join all layers, and what prevents it if not."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError
from gpusched.planning.layers.flow import Network
from gpusched.timing.machines import Machines


def merged(machines: Machines) -> Machines:
    """Return machines with equal kinds made one."""
    kinds = list({id(kind): kind for kind in machines.kinds}.values())
    index = {id(kind): i for i, kind in enumerate(kinds)}
    of = np.array([index[id(kind)] for kind in machines.kinds], np.int64)
    return replace(machines, kinds=tuple(kinds), kind_of=of[machines.kind_of])


def check_feasible(network: Network, model: str) -> None:
    """Check that the nodes hold the model and that links reach enough of them.

    Raises:
        InfeasibleError: names the nodes and what they lack.
    """
    machines, n = network.machines, network.n
    layers, most = machines.layers, np.minimum(network.most, network.machines.layers)
    if most.sum() < layers:
        by_kind = ", ".join(
            f"{int((machines.kind_of == kind).sum())} of {profile.kind} hold "
            f"{min(profile.most_layers, layers)} each"
            for kind, profile in enumerate(machines.kinds)
        )
        raise InfeasibleError(
            f"memory: {model} has {layers} layers, and the nodes hold {int(most.sum())} at most "
            f"beside their KV cache ({by_kind}); add nodes, or choose a smaller weights_dtype"
        )
    linked = network.links > 0
    reached = _reach(linked, n)[:n] & _reach(linked.T, n)[:n]
    if most[reached].sum() >= layers:
        return
    lost = [name for name, ok in zip(machines.names, reached, strict=True) if not ok]
    inside = [name for name, ok in zip(machines.names, reached, strict=True) if ok]
    shown = ", ".join(lost[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
    raise InfeasibleError(
        f"links: no link that carries anything joins {shown} to the front and the "
        f"{len(inside)} nodes on its side, which hold {int(most[reached].sum())} of the {layers} "
        f"layers of {model}; raise network.links or network.regions_gbps above 0 there"
    )


def _reach(linked: NDArray[np.bool_], start: int) -> NDArray[np.bool_]:
    seen = np.zeros(len(linked), np.bool_)
    seen[start] = True
    todo = [start]
    while todo:
        new = linked[todo.pop()] & ~seen
        seen |= new
        todo += np.flatnonzero(new).tolist()
    return seen
