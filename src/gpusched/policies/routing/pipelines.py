"""Policies that route requests over pipelines, by name."""

from dataclasses import dataclass

from gpusched.policies.parameters import read_policy
from gpusched.policies.routing import iwrr


@dataclass(frozen=True, slots=True)
class PipelineRouting:
    """A policy that chooses pipelines, with its parameters."""

    name: str
    summary: str
    kind: int
    parameters: tuple[str, ...] = ("kv_high_water", "output_share")
    kv_high_water: float = 0.9
    """Share of a node's KV cache up to which requests are let in."""
    output_share: float = 0.6
    """Part of the mean output that the KV estimate of a request counts."""
    mask_kv: bool = True
    """Whether nodes with too little KV cache left take no prompts."""
    smoothing: float = 0.8
    """SWARM: weight of the latest service time."""
    initial_s: float = 0.05
    """SWARM: first priority and service time."""


PIPELINE_ROUTING = {
    policy.name: policy
    for policy in (
        PipelineRouting(
            "iwrr", "interleaved weighted round-robin over planned flows (Helix)", iwrr.IWRR
        ),
        PipelineRouting(
            "swarm", "least accumulated service time at every hop", iwrr.SWARM,
            ("kv_high_water", "output_share", "smoothing", "initial_s"),
        ),
        PipelineRouting("random", "at random at every hop", iwrr.RANDOM),
        PipelineRouting("shortest-queue", "shortest queue at every hop", iwrr.SHORTEST_QUEUE),
    )
}  # fmt: skip

_RANGES = {
    "kv_high_water": (0.01, 1.0),
    "output_share": (0.0, 100.0),
    "smoothing": (0.0, 1.0),
    "initial_s": (0.0, 1e6),
}


def pipeline_routing(text: str) -> PipelineRouting:
    """Return the policy that ``text`` names, with the parameters it sets.

    Raises:
        InputError: no such policy or parameter, or a value out of range.
    """
    return read_policy("pipeline routing", text, PIPELINE_ROUTING, _RANGES)
