"""The best expert placement of a spec beside the usual ones, as figures and as a document."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InfeasibleError
from gpusched.moe.eplb import rebalance
from gpusched.moe.even_servers import even_servers
from gpusched.moe.placement import (
    ExpertPlacement,
    given_placement,
    greedy,
    place_experts,
    round_robin,
    trip_hops,
)
from gpusched.moe.spec import ExpertSpec, read_servers
from gpusched.moe.split import load_ratios, split_servers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """A placement down to GPUs."""

    name: str
    placement: ExpertPlacement
    gpu: Ints
    """Shape (layers, items)."""
    gpus: int

    @property
    def load_ratio(self) -> float:
        """Busiest GPU over mean, mean over layers."""
        return float(load_ratios(self.gpu, self.placement.weight, self.gpus).mean())

    @property
    def worst_load_ratio(self) -> float:
        """The same in the worst layer."""
        return float(load_ratios(self.gpu, self.placement.weight, self.gpus).max())

    def row(self) -> dict[str, Any]:
        """Return its figures under their names."""
        p = self.placement
        return {
            "name": self.name,
            "hops_per_token": p.hops,
            "hops_per_activation": p.hops_per_activation,
            "gpu_load_ratio": self.load_ratio,
            "worst_gpu_load_ratio": self.worst_load_ratio,
            "items": int(p.at.shape[1]),
            "moved": p.moved,
        }


@dataclass(frozen=True)
class Answer:
    """What ``gpusched place experts`` found."""

    spec: ExpertSpec
    topology: str
    servers: int
    trips: Floats
    """Hops of a token to each server and on, shape (layers, servers)."""
    candidates: tuple[Candidate, ...]
    """The best placement first, then the usual ones."""

    @property
    def best(self) -> Candidate:
        """The placement asked for."""
        return self.candidates[0]

    def document(self) -> dict[str, Any]:
        """Return the answer as plain data."""
        p = self.best.placement
        layers, experts, top_k = self.spec.shape
        return {
            "layers": layers, "experts": experts, "top_k": top_k, "replicas": self.spec.replicas,
            "topology": self.topology, "server_count": self.servers, "gpus": self.best.gpus,
            "hops_per_token": p.hops, "bound": p.bound, "method": p.method,
            "seconds": p.seconds, "moved": p.moved,
            "alternatives": [candidate.row() for candidate in self.candidates],
            "expert_of": p.expert_of.tolist() if self.spec.replicas else None,
            "servers": p.at.tolist(), "gpu": self.best.gpu.tolist(),
        }  # fmt: skip


def answer_experts(
    spec: ExpertSpec, seed: int = 0, progress: Callable[[str], None] = lambda message: None
) -> Answer:
    """Place a spec's experts for the fewest hops and compare with the usual placements.

    Raises:
        InputError: loads, network or earlier placement that cannot be used.
        InfeasibleError: the caps admit no placement.
    """
    topology = spec.topology.build(seed)
    servers, per_server = topology.servers, spec.gpus_per_server
    weight = spec.weights(seed)
    layers, experts = weight.shape
    trips = trip_hops(topology.hops(), layers, spec.hosts)
    layer_cap, total_cap = spec.caps(servers)
    previous = read_servers(spec.previous) if spec.previous else None

    def fewest_hops(cap: Ints) -> ExpertPlacement:
        return place_experts(
            weight, trips, layer_cap=cap, total_cap=total_cap, replicas=spec.replicas,
            previous=previous, move_cost=spec.move_hops, progress=progress,
        )  # fmt: skip

    best = fewest_hops(layer_cap)

    def split(name: str, placement: ExpertPlacement) -> Candidate:
        gpu = split_servers(placement.at, placement.weight, servers, per_server)
        return Candidate(name, placement, gpu, servers * per_server)

    candidates = [split("fewest hops", best)]
    if (ratio := spec.server_load_ratio) is not None:
        # swaps keep counts, so servers must not hold more than the ratio allows on average
        shares = best.at.shape[1] / servers
        cap = np.minimum(layer_cap, max(int(np.ceil(shares)), int(ratio * shares)))
        even = even_servers(fewest_hops(cap), trips, ratio)
        moved = 0 if previous is None else int((even.at != previous).sum())
        even = replace(
            even, bound=best.bound, moved=moved, objective=even.hops + spec.move_hops * moved
        )
        candidates.insert(0, split(f"servers within {ratio:g} of the mean", even))
    alone = ", no copies" if spec.replicas else ""
    uniform = np.full_like(weight, weight[0].sum() / experts)
    blind = place_experts(
        uniform, trips, layer_cap=layer_cap, total_cap=total_cap, progress=progress
    )
    candidates.append(
        split(
            f"fewest hops, loads unknown{alone}",
            given_placement(weight, trips, blind.at, "exchange"),
        )
    )
    try:
        at = greedy(weight, trips, layer_cap, total_cap)
        candidates.append(split(f"greedy{alone}", given_placement(weight, trips, at, "greedy")))
    except InfeasibleError:
        pass
    at = round_robin(layers, experts, servers)
    candidates.append(
        split(f"round-robin{alone}", given_placement(weight, trips, at, "round-robin"))
    )
    gpus = servers * per_server
    slots = -(-(experts + spec.replicas) // gpus) * gpus
    even_out = rebalance(weight, slots, 1, 1, gpus).expert_of
    gpu = np.tile(np.arange(slots) // (slots // gpus), (layers, 1))
    eplb = given_placement(weight, trips, gpu // per_server, "eplb", even_out)
    candidates.append(Candidate(f"EPLB, {slots - experts} replicas a layer", eplb, gpu, gpus))
    return Answer(spec, topology.name, servers, trips, tuple(candidates))


def answer_lines(answer: Answer) -> Iterator[str]:
    """Yield the answer in words."""
    p = answer.best.placement
    yield (
        f"{p.hops:.6g} hops per token ({p.hops_per_activation:.3f} per activation) over "
        f"{len(p.at)} layers on {answer.servers} servers ({answer.topology})"
    )
    how = {
        "sort": "optimal by sorting",
        "exchange": f"optimal, dual gap {p.gap:.1e}",
        "swaps": f"{p.gap:.1%} above the fewest hops without server_load_ratio",
    }[p.method]
    yield f"{how}, in {p.seconds:.2f} s"
    if not any(c.name.startswith("greedy") for c in answer.candidates):
        yield "greedy finds no room for the last layers"
    if answer.spec.previous:
        yield f"{p.moved} of {p.at.size} experts move"
