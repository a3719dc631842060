"""The engines and the store beside them, and what serving hours of requests takes: power, grams, SLO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.cache import Cache
from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.cluster import embodied_kg_per_hour
from gpusched.domain.gpu import Gpu
from gpusched.domain.plan import PlannedPool
from gpusched.domain.slo import SloClasses
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.cache_size.days import HOUR_S
from gpusched.planning.candidates import skeleton
from gpusched.sim.deploy import engine_timing, fleet_for, pool_memory
from gpusched.sim.fleet import Fleet
from gpusched.sim.prefix_cache.replay import CacheReplay, block_saving, replay_cache
from gpusched.sim.prefix_cache.store import ReadSpeed, Served, serve_from_store
from gpusched.sim.result import SimulationResult
from gpusched.sim.simulate import simulate
from gpusched.timing.energy import energy_j
from gpusched.timing.iteration import TimingModel
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
KV_BYTES = {"bf16": 2.0, "fp8": 1.0}


@dataclass(frozen=True)
class Server:
    """Equal engines on one group of nodes with a store of KV cache."""

    fleet: Fleet
    timing: TimingModel
    gpu: Gpu
    gpus: int
    nodes: int
    pue: float
    kv_bytes_per_token: float
    cache: Cache
    slo: SloClasses

    def tokens(self, tb: float) -> int:
        """Tokens whose KV cache takes so many terabytes."""
        return int(tb * 1e12 / self.kv_bytes_per_token)

    @property
    def store_speeds(self) -> list[ReadSpeed]:
        """Reading from DRAM, if the store has any, and SSD."""
        tiers = (self.cache.dram, self.cache.ssd) if self.cache.dram.tb else (self.cache.ssd,)
        return [
            ReadSpeed(self.kv_bytes_per_token / (t.gb_per_s * 1e9), t.latency_ms / 1e3)
            for t in tiers
        ]

    def fixed_w(self, ssd_tb: Floats) -> Floats:
        """Power beside the GPUs: hosts, DRAM and SSD."""
        dram_w = self.cache.dram.tb * self.cache.dram.watts_per_tb
        return self.nodes * self.cache.host_w + dram_w + ssd_tb * self.cache.ssd.watts_per_tb

    @property
    def other_g_per_hour(self) -> float:
        """Embodied carbon of an hour beside the SSD: GPUs with their servers, and DRAM."""
        life_hours = self.cache.lifetime_years * 8760.0
        dram = self.cache.dram.tb * self.cache.dram.kg_per_tb / life_hours
        return 1e3 * (self.gpus * embodied_kg_per_hour(self.gpu) + dram)


def server_of(spec: Spec) -> Server:
    """Return the server of a spec: engines over all GPUs of its one group of nodes, each of so few that
    KV cache gets no less memory than weights, or of a whole node.

    Raises:
        InputError: no cache, or several groups of nodes.
        InfeasibleError: the model does not fit.
    """
    if spec.cache is None:
        raise InputError(
            "cache: is missing; objective carbon of gpusched scale sizes a prompt cache: give at least "
            "'cache: {}' for its defaults"
        )
    if len(spec.cluster.nodes) != 1:
        raise InputError(
            f"cluster.nodes: the cache is sized for one group of equal nodes, got "
            f"{len(spec.cluster.nodes)}; give one group"
        )
    group = spec.cluster.nodes[0]
    model = load_model(spec.model)
    sizes = spec.search.tensor_parallel_sizes
    if sizes is not None and (len(sizes) > 1 or group.gpus_per_node % sizes[0]):
        raise InputError(
            f"search.tensor_parallel_sizes: give one size that divides a node's {group.gpus_per_node} "
            f"GPUs, got {sizes}"
        )
    failure: InfeasibleError | None = None
    best: Server | None = None
    for tp in sizes or _divisors(group.gpus_per_node):
        if model.attention.query_heads % tp:
            continue
        pool = PlannedPool(
            name="engines", nodes=spec.cluster.group_name(0), gpu=group.gpu,
            replicas=group.total_gpus // tp, tensor_parallel_size=tp, engine=spec.engine,
        )  # fmt: skip
        plan = skeleton(spec, (pool,))
        try:
            fleet = fleet_for(plan)
        except InfeasibleError as error:
            failure = error
            continue
        best = Server(
            fleet, engine_timing(plan, pool), load_gpu(group.gpu), pool.gpus, group.count,
            spec.cluster.pue, model.kv_bytes_per_token(KV_BYTES[spec.kv_cache_dtype]), spec.cache,
            spec.slo,
        )  # fmt: skip
        use = pool_memory(plan, pool)
        if use.kv_bytes >= use.weights_bytes:
            break
    if best is not None:
        return best
    raise failure or InfeasibleError(
        f"{spec.model}: no tensor parallelism fits its attention heads"
    )


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


@dataclass(frozen=True)
class Hours:
    """What serving some hours took. Arrays have an entry an hour."""

    size_tb: Floats
    power_w: Floats
    """Of all machines, without PUE."""
    requests: Floats
    attainment: Floats
    """Share of the hour's arrivals that met their objectives; 1 where none arrived."""
    written_tb_per_hour: float
    """Into the SSD, mean."""
    hit_ratio: float
    """Share of prompt tokens that the store held, in the hours counted."""
    saved_s: float
    """Prefill time that the store's hits saved, if each had been computed alone."""

    @property
    def share_in_time(self) -> float:
        """Share of all requests that met their objectives."""
        return float((self.attainment * self.requests).sum() / max(self.requests.sum(), 1e-300))


def replay_store(
    server: Server,
    trace: Trace,
    sizes_tb: Sequence[float],
    eviction: str,
    *,
    hour_s: float = HOUR_S,
    seed: int = 0,
) -> CacheReplay:
    """Replay a trace on the store, its SSD of the given size in each hour."""
    room = [server.tokens(size) for size in sizes_tb]
    fast = [server.tokens(server.cache.dram.tb)] if server.cache.dram.tb else []
    changes = [(h * hour_s, room[h]) for h in range(1, len(room)) if room[h] != room[h - 1]]
    prefix = trace.prefix
    depth = int(np.diff(prefix.offsets).max()) if prefix is not None and len(trace) else 0
    saving = block_saving(server.timing, prefix.block_tokens, depth) if prefix is not None else None
    return replay_cache(
        trace, [*fast, room[0]], eviction=eviction, saving=saving, resize=changes, seed=seed
    )


def serve_hours(
    server: Server,
    trace: Trace,
    sizes_tb: Sequence[float],
    *,
    eviction: str | None = None,
    warm_hours: int = 0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Hours:
    """Simulate hours of requests with an SSD cache of the given size in each; the first
    ``warm_hours`` fill it and are not counted."""
    replay = replay_store(server, trace, sizes_tb, eviction or server.cache.eviction, seed=seed)
    served = serve_from_store(trace, replay, server.store_speeds)
    result = simulate(server.fleet, served.trace, seed=seed, progress=progress, interval_s=HOUR_S)
    assert result.busy_s is not None
    hours = len(sizes_tb)
    busy_s = np.zeros((hours, 2))
    found = result.busy_s[:, 0, :]
    busy_s[: min(hours, len(found))] = found[:hours]
    busy_s[-1] += found[hours:].sum(axis=0)  # what is left over when the hours end
    sizes = np.asarray(sizes_tb, np.float64)
    power_w = gpu_power_w(server, busy_s, HOUR_S) + server.fixed_w(sizes)
    met = met_slo(server, served, result)
    arrived = np.minimum((trace.arrival_s[served.row] / HOUR_S).astype(np.int64), hours - 1)
    requests = np.bincount(arrived, minlength=hours).astype(np.float64)
    share = np.bincount(arrived, weights=met, minlength=hours) / np.maximum(requests, 1.0)
    counted = arrived >= warm_hours
    assert served.trace.stored_tokens is not None
    stored = served.trace.stored_tokens[counted]
    written = float(replay.entered_tokens[-1]) * server.kv_bytes_per_token / 1e12 / hours
    part = slice(warm_hours, None)
    return Hours(
        sizes[part], power_w[part], requests[part], np.where(requests > 0, share, 1.0)[part],
        written, float(stored.sum() / max(served.trace.prompt_tokens[counted].sum(), 1)),
        saved_s(server, stored),
    )  # fmt: skip


def gpu_power_w(server: Server, busy_s: Floats, span_s: float) -> Floats:
    """Return the power of all GPUs from busy time and its prefill part, shape (..., 2), summed over the
    engines; more than the rated power where work from before is counted in the span."""
    engines = server.fleet.pools[0].lanes
    share = busy_s / (span_s * engines)
    prefill, decode = share[..., 1], share[..., 0] - share[..., 1]
    watts = [
        energy_j(server.gpu, server.gpus, 1.0, p, d)
        for p, d in zip(prefill.ravel(), decode.ravel(), strict=True)
    ]
    return np.reshape(watts, prefill.shape)


def met_slo(server: Server, served: Served, result: SimulationResult) -> NDArray[np.bool_]:
    """Tell which requests met their objectives, loading from the store included."""
    ok = np.zeros(len(result.arrival_s), bool)
    classes = served.trace.class_id
    for number, bounds in enumerate(server.slo.classes.values()):
        own = np.ones(len(ok), bool) if classes is None else classes == number
        ok[own] = bounds.met(
            (result.ttft_s + served.load_s)[own],
            result.tpot_s[own],
            (result.e2e_s + served.load_s)[own],
        )
    return ok


def saved_s(server: Server, stored: NDArray[np.int32]) -> float:
    """Return the prefill time of so many leading tokens, each prompt's computed alone."""
    values, counts = np.unique(stored[stored > 0], return_counts=True)
    if not len(values):
        return 0.0
    grid = np.unique(np.linspace(0, len(values) - 1, 200).astype(np.int64))
    times = [server.timing.prefill_s(int(tokens)) for tokens in values[grid]]
    return float((np.interp(values, values[grid], times) * counts).sum())


def with_cache(server: Server, **changes: object) -> Server:
    """Return the server with other settings of its cache."""
    return replace(server, cache=server.cache.model_copy(update=changes))
