"""What a simulation of pipelines returns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.gaps import GapHistogram
from gpusched.sim.result import in_system, spread

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NodeUse:
    """What each node did, arrays of shape (n,) over the whole simulation."""

    names: tuple[str, ...]
    iterations: Integers
    """Batches run; one that other requests join at a later layer counts anew from there."""
    layer_iterations: Integers
    """The same, a batch counted in every layer."""
    mean_batch: Floats
    """Requests in a batch."""
    busy_share: Floats
    prompt_busy_share: Floats
    """Part of the time spent on prompts."""
    mean_wait_s: Floats
    """Of a prompt or token between its arrival at the node and the start of its batch."""
    kv_peak: Floats
    """Largest share of the KV cache in use; above 1 the router's estimate was too low."""
    kv_reserved_peak: Floats
    """Largest share by the router's estimate."""


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """Times of every request and use of every node. Request arrays leave out what a closed loop
    never issued; nan: not yet, or rejected."""

    arrival_s: Floats
    dispatched_s: Floats
    """When the request first got a pipeline."""
    first_token_s: Floats
    finish_s: Floats
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    produced_tokens: NDArray[np.int32]
    restarts: NDArray[np.int32]
    """Times that a failed node made it start again."""
    hops: NDArray[np.int32]
    """Nodes of the pipeline."""
    rejected: NDArray[np.bool_]
    """No pipeline could ever take it."""
    decode_latency: GapHistogram
    """Of every token after the first, from leaving the front to coming back, in the window."""
    decode_tokens: int
    """Tokens after each request's first that came back in the window."""
    computed_prompt_tokens: int
    """Prompt tokens whose first token came back in the window."""
    warmup_s: float
    """Start of the window."""
    end_s: float
    """End of the window and of the simulation."""
    nodes: NodeUse
    series_s: Floats
    """Edges of the time series, shape (bins + 1,)."""
    busy: Floats
    """Share of time busy, shape (n, bins); a batch counts where it starts."""
    kv_use: Floats
    """Largest share of KV cache in use, shape (n, bins)."""
    token_rate: Floats
    """Tokens/s given, first ones included, shape (bins,)."""
    wall_s: float
    """Time the kernel took, compilation excluded."""
    processor_s: float
    """The same, without the time that other programs had the processor."""

    @property
    def window_s(self) -> float:
        """Length of the measured window."""
        return max(self.end_s - self.warmup_s, 1e-12)

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode throughput in the window."""
        return self.decode_tokens / self.window_s

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prompt throughput in the window."""
        return self.computed_prompt_tokens / self.window_s

    @property
    def ttft_s(self) -> Floats:
        """Time to first token, waiting at the front included."""
        return self.first_token_s - self.arrival_s

    @property
    def prompt_latency_s(self) -> Floats:
        """First token minus dispatch, of requests never restarted: what the Helix paper reports."""
        return np.where(self.restarts == 0, self.first_token_s - self.dispatched_s, np.nan)

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; 0 for answers of one token."""
        return (self.finish_s - self.first_token_s) / np.maximum(self.output_tokens - 1, 1)

    @property
    def e2e_s(self) -> Floats:
        """Arrival to last token."""
        return self.finish_s - self.arrival_s

    @property
    def iterations(self) -> int:
        """Batches run on all nodes."""
        return int(self.nodes.iterations.sum())

    def counted(self, times: Floats) -> NDArray[np.bool_]:
        """Tell which of these times lie in the window."""
        return (times >= self.warmup_s) & (times <= self.end_s)

    def in_system(self) -> dict[str, Floats]:
        """Requests waiting at the front and in pipelines over ``series_s``: means per bin."""
        arrived_s = self.arrival_s[~self.rejected]
        return in_system(self.series_s, arrived_s, self.dispatched_s, self.finish_s)


def summarize(result: PipelineResult) -> dict[str, Any]:
    """Return the figures that need no SLO or price, under the keys of ``simulate --json``."""
    first = result.counted(result.first_token_s)
    done = result.counted(result.finish_s)
    several = done & (result.output_tokens > 1)
    nodes = result.nodes
    return {
        "requests": len(result.arrival_s),
        "completed": int(done.sum()),
        "rejected": int(result.rejected.sum()),
        "simulated_s": result.end_s,
        "wall_s": result.wall_s,
        "requests_per_wall_s": len(result.arrival_s) / max(result.wall_s, 1e-9),
        "iterations": result.iterations,
        "ttft_s": spread(result.ttft_s[first]),
        "prompt_latency_s": spread(
            result.prompt_latency_s[first & ~np.isnan(result.prompt_latency_s)]
        ),
        "tpot_s": spread(result.tpot_s[several]),
        "itl_s": result.decode_latency.spread(),
        "e2e_s": spread(result.e2e_s[done]),
        "queue_s": spread((result.dispatched_s - result.arrival_s)[first]),
        "output_tokens_per_s": (result.decode_tokens + int(first.sum())) / result.window_s,
        "decode_tokens_per_s": result.decode_tokens_per_s,
        "prompt_tokens_per_s": result.prompt_tokens_per_s,
        "restarts": int(result.restarts.sum()),
        "kv_utilization_peak": float(nodes.kv_peak.max(initial=0.0)),
        "nodes": [
            {
                "name": name,
                "utilization": float(nodes.busy_share[i]),
                "mean_batch": float(nodes.mean_batch[i]),
                "mean_wait_s": float(nodes.mean_wait_s[i]),
                "kv_utilization_peak": float(nodes.kv_peak[i]),
                "iterations": int(nodes.iterations[i]),
            }
            for i, name in enumerate(nodes.names)
        ],
    }
