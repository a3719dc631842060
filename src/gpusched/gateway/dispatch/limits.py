"""Limits that the dispatcher keeps."""

from dataclasses import dataclass
from typing import Self

from gpusched.domain.gateway import GatewaySettings


@dataclass(frozen=True, slots=True)
class Limits:
    """The part of a gateway's settings that the dispatcher goes by; see there."""

    max_queued: int = 4096
    max_wait_s: float = 60.0
    retries: int = 2
    hedge_after_s: float | None = None
    prefix_index_bytes: float = 64e6

    @classmethod
    def of(cls, gateway: GatewaySettings) -> Self:
        """Return those of a plan's gateway."""
        return cls(
            gateway.max_queued, gateway.max_wait_s, gateway.retries, gateway.hedge_after_s,
            gateway.prefix_index_mb * 1e6,
        )  # fmt: skip
