"""What joins the nodes: bandwidth and latency within regions, between them, and on single links."""

from pydantic import Field

from gpusched.domain.document import Section


class Link(Section):
    """What joins two places, in both directions. A place is a node, a group of nodes or a region."""

    ends: tuple[str, str]
    gbps: float | None = Field(default=None, ge=0, le=1e6)
    """Gigabits a second; 0 cuts the link."""
    latency_ms: float | None = Field(default=None, ge=0, le=1e5)
    """One way."""


class Network(Section):
    """Bandwidth and latency between nodes. What ``links`` says of two places goes before the rest;
    later links go before earlier ones."""

    gbps: float | None = Field(default=None, gt=0, le=1e6)
    """Between two nodes of one region; the cluster's ``inter_node_gbps`` or the NICs if not given."""
    latency_ms: float = Field(default=0.1, ge=0, le=1e5)
    """Between two nodes of one region, one way."""
    regions_gbps: float = Field(default=1.0, ge=0, le=1e6)
    """Between two nodes of different regions."""
    regions_latency_ms: float = Field(default=50.0, ge=0, le=1e5)
    """Between two nodes of different regions, one way."""
    front: str | None = None
    """Region where requests enter and answers leave; that of the first group if not given."""
    links: tuple[Link, ...] = Field(default=(), max_length=100_000)
