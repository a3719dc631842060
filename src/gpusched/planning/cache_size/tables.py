"""Power, attainment and writes by load and size of the cache, from simulations of a trace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.planning.cache_size.server import (
    Server,
    gpu_power_w,
    met_slo,
    replay_store,
)
from gpusched.sim.prefix_cache.store import serve_from_store
from gpusched.sim.simulate import simulate
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
WARM_SHARE = 0.4
"""Leading requests that only fill the cache."""
MOST_REQUESTS = 4000
"""Simulated at each load."""


@dataclass(frozen=True)
class Tables:
    """Measured at some loads, linear between them, constant outside."""

    loads_rps: Floats
    """Ascending, shape (loads,)."""
    sizes_tb: Floats
    power_w: Floats
    """Shape (loads, sizes)."""
    attainment: Floats
    """Shape (loads, sizes)."""
    hit_ratio: Floats
    """Share of prompt tokens that the store holds, shape (sizes,)."""
    written_tb_per_request: Floats
    """Into the SSD, shape (sizes,)."""

    def at(self, requests_per_s: Floats) -> tuple[Floats, Floats, Floats]:
        """Return power, attainment and terabytes written an hour, each of shape (intervals, sizes)."""
        loads = np.asarray(requests_per_s, np.float64)
        sizes = range(len(self.sizes_tb))
        power = np.stack([np.interp(loads, self.loads_rps, self.power_w[:, s]) for s in sizes], 1)
        share = np.stack(
            [np.interp(loads, self.loads_rps, self.attainment[:, s]) for s in sizes], 1
        )
        return power, share, loads[:, None] * 3600.0 * self.written_tb_per_request


def measure_tables(
    server: Server,
    trace: Trace,
    loads_rps: Sequence[float],
    *,
    eviction: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> Tables:
    """Simulate a trace at every load and size; its first part only fills the cache.

    Raises:
        InputError: too few requests, or loads that do not ascend.
    """
    if len(trace) < 50:
        raise InputError(
            f"{trace.name}: {len(trace)} requests are too few to measure a cache; give at least 50"
        )
    loads = np.asarray(loads_rps, np.float64)
    if not len(loads) or loads[0] <= 0 or (np.diff(loads) <= 0).any():
        raise InputError(f"loads: must ascend from above 0, got {loads.tolist()}")
    sizes = np.array(server.cache.sizes_tb)
    warm = int(WARM_SHARE * len(trace))
    kept = np.arange(warm, min(len(trace), warm + MOST_REQUESTS))
    shape = (len(loads), len(sizes))
    power, share = np.zeros(shape), np.zeros(shape)
    hit, written = np.zeros(len(sizes)), np.zeros(len(sizes))
    for s, size in enumerate(sizes):
        replay = replay_store(server, trace, [size], eviction or server.cache.eviction, seed=seed)
        counted = replay.hit_tokens[warm:].sum(axis=1)
        hit[s] = counted.sum() / trace.prompt_tokens[warm:].sum()
        written[s] = replay.entered_tokens[-1] * server.kv_bytes_per_token / 1e12 / len(trace)
        for i, load in enumerate(loads):
            progress(f"{size:g} TB at {load:.3g} requests a second")
            paced = trace.scale_rate(load / trace.rate_rps)
            served = serve_from_store(paced, replay, server.store_speeds)
            rows = np.flatnonzero(np.isin(served.row, kept))
            part = served.trace.take(rows)
            part = part.slice_time(float(part.arrival_s[0]))
            result = simulate(server.fleet, part, seed=seed)
            use = result.pools[0]
            busy = np.array([use.busy_s, use.prefill_busy_s]) / use.replicas
            busy *= server.fleet.pools[0].lanes
            power[i, s] = gpu_power_w(server, busy, result.makespan_s) + server.fixed_w(size)
            seen = type(served)(part, served.row[rows], served.load_s[rows])
            share[i, s] = met_slo(server, seen, result).mean()
    return Tables(loads, sizes, power, share, hit, written)
