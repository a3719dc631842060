"""Where the layers or blocks of one model lie when no single machine holds all of them."""

from typing import Literal

from pydantic import Field, model_validator

from gpusched.domain.document import Section
from gpusched.domain.engine import PolicyName
from gpusched.domain.gateway import EngineAddress

FRONT = "front"
"""Where requests enter and answers leave."""


class NodeLayers(Section):
    """A node and the contiguous layers it holds."""

    node: str
    first: int = Field(ge=0)
    """The first layer, counted from 0."""
    layers: int = Field(ge=1)
    endpoint: EngineAddress | None = None
    """Where a gateway sends the requests that enter at this node."""


class Flow(Section):
    """Planned traffic from one node, or the front, to the next."""

    ends: tuple[str, str]
    tokens_per_s: float = Field(ge=0)


class LayerPlacement(Section):
    """Layers over nodes, and the flow that says how requests spread over them (Helix)."""

    nodes: tuple[NodeLayers, ...] = Field(min_length=1, max_length=10_000)
    flows: tuple[Flow, ...] = Field(min_length=1, max_length=1_000_000)
    partial_inference: bool = False
    """Whether a node may run only the later part of its layers."""
    routing: PolicyName = "iwrr"

    @model_validator(mode="after")
    def _check_flows(self) -> "LayerPlacement":
        known = {placed.node for placed in self.nodes} | {FRONT}
        for flow in self.flows:
            for end in flow.ends:
                if end not in known:
                    raise ValueError(f"flows: {end!r} is neither {FRONT!r} nor a node with layers")
        return self


class BlockPlacement(Section):
    """Transformer blocks over servers that each keep attention caches (PETALS, BPRR)."""

    nodes: tuple[NodeLayers, ...] = Field(min_length=1, max_length=10_000)
    design_concurrency: int = Field(ge=1)
    """Requests at once for which every server keeps cache."""
    decode_batch: int = Field(default=1, ge=1)
    """Requests that decode together on a server: the time of a token is that of such a batch."""
    routing: PolicyName = "ws-rr"


Kind = Literal["pools", "layers", "blocks", "cascade"]
