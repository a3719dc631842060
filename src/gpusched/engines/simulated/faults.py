"""What can go wrong with a simulated engine, on demand."""

from typing import Annotated

from pydantic import Field

from gpusched.domain.document import Section

Share = Annotated[float, Field(ge=0, le=1)]


class Faults(Section):
    """Faults of an engine; without any it is sound. Shares are of the requests, drawn by seed."""

    refuse: bool = False
    """The port is closed: connections are refused and open ones are cut."""
    frozen: bool = False
    """Connections are accepted and nothing is answered; open streams stand still."""
    status: int = Field(default=500, ge=400, le=599)
    """Given to ``status_share`` of the requests in place of an answer."""
    status_share: Share = 0.0
    drop_after_events: int = Field(default=3, ge=0)
    """Of ``drop_share`` of the streams, the connection is cut after as many events."""
    drop_share: Share = 0.0
    slowdown: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on the time of every iteration."""
    first_token_delay_s: float = Field(default=0.0, ge=0, le=1e6)
    """Before an answer's first event."""
    garbled_metrics: bool = False
    """``/metrics`` answers with text that is none."""
    unhealthy: bool = False
    """``/health`` answers with 503."""
