"""What an engine says about itself, whatever its make."""

from dataclasses import dataclass


@dataclass(slots=True)
class EngineState:
    """A reading of an engine's load; None where it says nothing."""

    running: int | None = None
    """Requests in the batch."""
    waiting: int | None = None
    """Requests in its queue."""
    kv_usage: float | None = None
    """Share of the KV cache in use, 0 to 1."""
    kv_tokens: int | None = None
    """Size of the KV cache."""
    prefix_queries: float | None = None
    """Prompt tokens looked up in the prefix cache since the engine started."""
    prefix_hits: float | None = None
    """Of these, found."""
    prefix_hit_rate: float | None = None
    """Where the engine gives it itself."""
    prompt_tokens: float | None = None
    """Computed since the engine started."""
    output_tokens: float | None = None
    """Given since the engine started."""
    preemptions: float | None = None

    @property
    def requests(self) -> int | None:
        """Requests it has, in the batch or waiting; None if it gives neither."""
        if self.running is None and self.waiting is None:
            return None
        return (self.running or 0) + (self.waiting or 0)

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens found in the prefix cache."""
        if self.prefix_hit_rate is not None:
            return self.prefix_hit_rate
        if not self.prefix_queries or self.prefix_hits is None:
            return None
        return min(self.prefix_hits / self.prefix_queries, 1.0)
