"""What a simulation returns: per-request times, gaps between tokens, and use of the replicas."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.routing.adaptive import BRANCHES, LEAST_BAD_LOCAL, LOCAL
from gpusched.sim.gaps import GapHistogram

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """Totals over the replicas of one pool."""

    name: str
    role: str
    replicas: int
    gpus: int
    iterations: int
    """Batches computed; those of data-parallel units that step together count one by one."""
    busy_s: float
    """Summed over replicas. A pipeline lane counts by its share of the replica; a data-parallel unit
    is as busy as its replica, idle or not."""
    prefill_busy_s: float
    """Part of ``busy_s`` in iterations that carry prompt tokens, units by their share."""
    prompt_tokens: int
    """Prompt tokens computed: recomputed ones counted again, cached ones not."""
    output_tokens: int
    kv_peak: float
    """Largest share of a lane's KV blocks in use at any time. An upper bound in prefill pools: a
    long prompt's blocks are counted from its first chunk on, while transfers free others."""


@dataclass(frozen=True, slots=True)
class RoundLog:
    """How the rounds of sessions were placed. Arrays have one entry a request."""

    branch: NDArray[np.int8]
    """Branch that placed its first prefill: an index into ``policies.routing.adaptive.BRANCHES``."""
    history_tokens: NDArray[np.int32]
    """KV tokens of history that the round found on its decode replica."""
    evicted: NDArray[np.bool_]
    """Rounds whose history was evicted before they could use it: their whole prompt was computed
    anew, or sent whole from the prefill replica."""
    evictions: int
    """Histories evicted, those that no round asked for again included."""

    @property
    def local_share(self) -> float:
        """Share of incremental prefills, those with a history, that ran on their decode replica."""
        incremental = self.history_tokens > 0
        local = np.isin(self.branch, (LOCAL, LEAST_BAD_LOCAL))
        return float(local[incremental].mean()) if incremental.any() else 0.0

    def branch_counts(self, counted: NDArray[np.bool_]) -> dict[str, int]:
        """Return how many of the counted requests took each branch."""
        counts = np.bincount(self.branch[counted], minlength=len(BRANCHES))
        return {name: int(counts[i]) for i, name in enumerate(BRANCHES) if i > 0}


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """Times of every request and use of every pool. Arrays have one entry a request."""

    arrival_s: Floats
    admitted_s: Floats
    """Start of the first iteration that carries the request; nan if rejected."""
    first_token_s: Floats
    finish_s: Floats
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    cached_tokens: NDArray[np.int32]
    """Prompt tokens found in the prefix cache at first admission."""
    preemptions: NDArray[np.int32]
    replica: NDArray[np.int32]
    """Replica that gave the last token, numbered over pools in order."""
    rejected: NDArray[np.bool_]
    class_id: NDArray[np.int16] | None
    gaps: GapHistogram
    """Gaps between successive tokens, pooled over requests."""
    pools: tuple[PoolUse, ...]
    series_s: Floats
    """Edges of the time series, shape (bins + 1,)."""
    kv_use: Floats
    """Mean share of KV blocks in use, shape (pools, bins)."""
    makespan_s: float
    """Time of the last event."""
    wall_s: float
    """Time the kernel took, compilation excluded."""
    notes: tuple[str, ...] = ()
    """What policies assumed, such as a load that they find unstable."""
    rounds: RoundLog | None = None
    """Where rounds of sessions were placed one by one."""
    busy_s: Floats | None = None
    """By interval, where asked for: ``busy_s`` and ``prefill_busy_s`` of each pool's engines summed,
    shape (intervals, pools, 2). Time counts where an iteration, or a run of equal ones, ends."""

    @property
    def local_prefill_share(self) -> float | None:
        """Share of incremental prefills that ran where their history was; None where none is kept."""
        return None if self.rounds is None else self.rounds.local_share

    @property
    def ttft_s(self) -> Floats:
        """Time to first token; nan for rejected requests."""
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> Floats:
        """Arrival to last token; nan for rejected requests."""
        return self.finish_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first; 0 for answers of one token."""
        return (self.finish_s - self.first_token_s) / np.maximum(self.output_tokens - 1, 1)

    @property
    def queue_s(self) -> Floats:
        """Arrival to first admission; nan for rejected requests."""
        return self.admitted_s - self.arrival_s

    def after(self, warmup_s: float) -> NDArray[np.bool_]:
        """Requests that arrive once the warm-up is over."""
        return self.arrival_s >= warmup_s

    def in_system(self) -> dict[str, Floats]:
        """Waiting and running requests over ``series_s``: means per bin, shape (bins,)."""
        ok = ~self.rejected
        return in_system(self.series_s, self.arrival_s[ok], self.admitted_s[ok], self.finish_s[ok])


def in_system(
    edges: Floats, arrived_s: Floats, started_s: Floats, finished_s: Floats
) -> dict[str, Floats]:
    """Return requests that have arrived and not started, and started and not finished: means over
    the bins between ``edges``. Times that are nan are yet to come."""

    def integral(times: Floats) -> Floats:
        times = np.sort(times[~np.isnan(times)])
        total = np.concatenate(([0.0], np.cumsum(times)))
        count = np.searchsorted(times, edges, side="right")
        return np.asarray(count * edges - total[count])

    arrived, started, finished = (integral(times) for times in (arrived_s, started_s, finished_s))
    width = np.maximum(np.diff(edges), 1e-300)
    return {
        "waiting": np.diff(arrived - started) / width,
        "running": np.diff(started - finished) / width,
    }


def spread(values: Floats) -> dict[str, float | None]:
    """Mean, percentiles and maximum of a sample; all None if it is empty."""
    if not values.size:
        return dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"))
    p50, p90, p95, p99 = np.percentile(values, (50, 90, 95, 99))
    return {
        "mean": float(values.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p95": float(p95),
        "p99": float(p99),
        "max": float(values.max()),
    }


def summarize(result: SimulationResult, *, warmup_s: float = 0.0) -> dict[str, Any]:
    """Return the metrics that need no SLO, price or power: latencies, rates, KV use."""
    counted = result.after(warmup_s)
    done = counted & ~result.rejected
    several = done & (result.output_tokens > 1)
    span_s = max(result.makespan_s - warmup_s, 0.0)
    tokens = int(result.output_tokens[done].sum())
    values = {
        "requests": int(counted.sum()),
        "completed": int(done.sum()),
        "rejected": int((counted & result.rejected).sum()),
        "simulated_s": result.makespan_s,
        "wall_s": result.wall_s,
        "requests_per_wall_s": len(result.arrival_s) / max(result.wall_s, 1e-9),
        "iterations": sum(pool.iterations for pool in result.pools),
        "ttft_s": spread(result.ttft_s[done]),
        "tpot_s": spread(result.tpot_s[several]),
        "itl_s": result.gaps.spread(),
        "e2e_s": spread(result.e2e_s[done]),
        "queue_s": spread(result.queue_s[done]),
        "output_tokens_per_s": tokens / span_s if span_s > 0 else 0.0,
        "prefix_hit_rate": float(
            result.cached_tokens[done].sum() / max(int(result.prompt_tokens[done].sum()), 1)
        ),
        "preemptions": int(result.preemptions[counted].sum()),
        "kv_utilization_peak": max((pool.kv_peak for pool in result.pools), default=0.0),
    }
    if result.rounds is not None:
        log = result.rounds
        values["rounds"] = {
            "incremental_prefills": int((counted & (log.history_tokens > 0)).sum()),
            "local_prefill_share": result.local_prefill_share,
            "branches": log.branch_counts(counted),
            "history_evictions": log.evictions,
            "histories_missed": int((counted & log.evicted).sum()),
        }
    return values
