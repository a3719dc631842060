"""The whole answer of ``gpusched scale`` with ``objective: carbon``."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.spec import Spec
from gpusched.errors import InputError
from gpusched.planning.cache_size.carbon import SSD_KG_PER_TB_RANGE
from gpusched.planning.cache_size.days import days_of, unrolled
from gpusched.planning.cache_size.demand import demand_of
from gpusched.planning.cache_size.rolling import (
    Demand,
    Rolled,
    attainment_asked,
    grams,
    guarded,
)
from gpusched.planning.cache_size.server import Hours, Server, serve_hours, server_of, with_cache
from gpusched.planning.cache_size.tables import Tables, measure_tables
from gpusched.traces.reuse import hit_curve
from gpusched.traces.trace import Trace
from gpusched.traces.workload import load_workload

Floats = NDArray[np.float64]
WARM_HOURS = 12
"""Before the hours counted, to fill the cache."""
LOADS = 5
CHUNK_TOKENS = 256
MOST_REQUESTS = 20_000_000
ELASTIC = (
    "flash that the cache gives up is taken to serve somebody else, who bears its embodied carbon; if "
    "nobody can use it, holding the largest size costs nothing more and is best"
)


@dataclass(frozen=True)
class Outcome:
    """One way to hold a cache, simulated."""

    name: str
    hours: Hours
    operational_g: float
    ssd_g: float
    other_g: float

    @property
    def total_g(self) -> float:
        """All carbon of the hours."""
        return self.operational_g + self.ssd_g + self.other_g


@dataclass(frozen=True)
class Sensitivity:
    """The answer if flash embodied so much carbon."""

    ssd_kg_per_tb: float
    adaptive: Outcome
    none: Outcome
    full: Outcome
    best_fixed: Outcome


@dataclass(frozen=True)
class CacheAnswer:
    """Sizes by the hour with their evidence."""

    server: Server
    tables: Tables
    demand: Demand
    rolled: Rolled
    guarded_after: tuple[int, ...]
    """Hours that missed the attainment, after which the guard acted."""
    asked: float
    adaptive: Outcome
    rivals: tuple[Outcome, ...]
    """Fixed sizes, ascending."""
    sensitivity: tuple[Sensitivity, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float


def plan_cache(
    spec: Spec, *, seed: int = 0, progress: Callable[[str], None] = lambda message: None
) -> CacheAnswer:
    """Return the sizes of a spec's cache by the hour, simulated beside fixed ones.

    The first part of the workload makes the tables, the rest the days served.

    Raises:
        InputError: the workload shares no prefixes, or the series are too short.
        InfeasibleError: the model does not fit, or no size reaches the attainment.
    """
    begun = time.perf_counter()
    server = server_of(spec)
    trace = in_chunks(unrolled(load_workload(spec.workload, spec.slo, seed=seed)))
    profile, content, notes = halves(trace)
    demand = demand_of(spec, trace.rate_rps, seed=seed)
    tables = measure_tables(server, profile, loads_of(demand), seed=seed, progress=progress)
    days = warm_days(content, demand)
    found = compare_sizes(server, tables, demand, days, seed=seed, progress=progress)
    assert spec.cache is not None
    return replace(
        found,
        assumptions=(
            ELASTIC, *notes, reuse_note(server, profile), *demand.notes,
            f"the cache is filled for {WARM_HOURS} hours, which are not counted, before the first",
            f"embodied carbon of flash {spec.cache.ssd.kg_per_tb:g} kg/TB over "
            f"{spec.cache.lifetime_years:g} years; published values lie between 4 and 160",
            *(() if spec.cache.ssd.endurance is not None else
              ("wear of flash is not counted; give cache.ssd.endurance to count it",)),
            f"GPUs: idle and rated power of the data sheets; hosts {spec.cache.host_w:g} W a node; "
            f"PUE {spec.cluster.pue:g}",
            *trace.notes,
        ),
        seconds=time.perf_counter() - begun,
    )  # fmt: skip


def in_chunks(trace: Trace) -> Trace:
    """Return the trace with prefixes cached in chunks of 256 tokens or more, as stores do (LMCache's
    default), instead of the engines' small blocks."""
    if trace.prefix is None or trace.prefix.block_tokens > CHUNK_TOKENS // 2:
        return trace
    return replace(trace, prefix=trace.prefix.coarse(CHUNK_TOKENS // trace.prefix.block_tokens))


def halves(trace: Trace) -> tuple[Trace, Trace, tuple[str, ...]]:
    """Return the part that tables are made of, the part that days are made of, and what to tell."""
    middle = len(trace) // 2
    if middle < 200:
        return trace, trace, (
            f"{trace.name} has {len(trace)} requests only: the same ones make the tables and the days",
        )  # fmt: skip
    first = trace.take(np.arange(middle))
    rest = trace.take(np.arange(middle, len(trace)))
    return first, rest.slice_time(float(rest.arrival_s[0])), (
        f"the first {middle} requests of {trace.name} make the tables, the others, over and over with "
        "new content, the days",
    )  # fmt: skip


def reuse_note(server: Server, trace: Trace) -> str:
    """Return how large a cache the trace's reuse distances call for, from one pass over them."""
    curve = hit_curve(trace, warm_from=len(trace) // 3)
    if not len(curve.tokens) or curve.hit_ratio[-1] <= 0:
        return f"{trace.name}: no prompt begins like an earlier one"
    nearly = int(curve.tokens[int((curve.hit_ratio >= 0.95 * curve.hit_ratio[-1]).argmax())])
    return (
        f"reuse distances of {trace.name}: of an unlimited cache's hits, {curve.hit_ratio[-1]:.1%} of all "
        f"prompt tokens, one of {nearly * server.kv_bytes_per_token / 1e12:.3g} TB gets 95 % (LRU)"
    )


def loads_of(demand: Demand) -> list[float]:
    """Return the loads to measure at: from the lowest to a third above the highest."""
    seen = demand.requests_per_s[demand.requests_per_s > 0]
    if not len(seen):
        raise InputError("load: no hour has any request; raise the workload's rate")
    return list(np.linspace(max(seen.min(), seen.max() / 20), 1.3 * seen.max(), LOADS))


def warm_days(content: Trace, demand: Demand) -> Trace:
    """Return the hours to count behind some that fill the cache.

    Raises:
        InputError: more requests than can be simulated.
    """
    counted = demand.requests_per_s[demand.history :]
    before = np.resize(counted[-WARM_HOURS:], WARM_HOURS)
    expected = (before.sum() + counted.sum()) * 3600.0
    if expected > MOST_REQUESTS:
        raise InputError(
            f"load: {expected:.3g} requests in {len(counted)} hours; at most {MOST_REQUESTS:.0e} are "
            "simulated: lower cache.days, or size the cache of fewer nodes at a smaller load"
        )
    return days_of(content, np.concatenate([before, counted]))


def compare_sizes(
    server: Server,
    tables: Tables,
    demand: Demand,
    days: Trace,
    *,
    seed: int = 0,
    kg_per_tb: tuple[float, ...] = SSD_KG_PER_TB_RANGE,
    served: dict[tuple[float, ...], Hours] | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> CacheAnswer:
    """Return the rolling schedule beside every fixed size, at the cache's own embodied carbon and at
    ``kg_per_tb``. ``served`` keeps what has been simulated already."""
    known: dict[tuple[float, ...], Hours] = {} if served is None else served
    hours, asked = demand.hours, attainment_asked(server)
    intensity = demand.g_per_kwh[demand.history :]
    largest = float(tables.sizes_tb[-1])

    def serve(sizes_tb: Floats) -> Hours:
        key = tuple(float(size) for size in sizes_tb)
        if key not in known:
            progress(f"serving {hours} hours, {np.mean(key):.3g} TB on average")
            warm = [key[0] if len(set(key)) == 1 else largest] * WARM_HOURS
            known[key] = serve_hours(server, days, [*warm, *key], warm_hours=WARM_HOURS, seed=seed)
        return known[key]

    fixed = [serve(np.full(hours, size)) for size in tables.sizes_tb]

    def outcome(name: str, found: Hours, kg: float) -> Outcome:
        return Outcome(name, found, *grams(server, found, intensity, ssd_kg_per_tb=kg))

    rows, own = [], None
    for kg in dict.fromkeys((server.cache.ssd.kg_per_tb, *kg_per_tb)):
        ssd = server.cache.ssd.model_copy(update={"kg_per_tb": kg})
        rolled, found, missed = guarded(
            with_cache(server, ssd=ssd), tables, demand, serve, start_tb=largest
        )
        rivals = [
            outcome("no cache" if size == 0 else f"always {size:g} TB", there, kg)
            for size, there in zip(tables.sizes_tb, fixed, strict=True)
        ]
        good = [r for r in rivals if r.hours.share_in_time >= asked] or [
            max(rivals, key=lambda r: r.hours.share_in_time)
        ]
        best = min(good, key=lambda r: r.total_g)
        row = Sensitivity(kg, outcome("adaptive", found, kg), rivals[0], rivals[-1], best)
        rows.append(row)
        if own is None:
            own = (rolled, missed, row.adaptive, tuple(rivals))
    assert own is not None
    rolled, missed, adaptive, rivals_own = own
    warnings = []
    if adaptive.hours.share_in_time < asked:
        warnings.append(
            f"{adaptive.hours.share_in_time:.2%} of the requests met the objectives, {asked:.2%} are "
            "asked: the forecast was too low in some hours; raise the attainment asked, or add GPUs"
        )
    if rolled.relaxed:
        warnings.append(
            f"in {rolled.relaxed} hours no schedule was forecast to reach the attainment; the size "
            "with most requests in time was held"
        )
    return CacheAnswer(
        server, tables, demand, rolled, missed, asked, adaptive, rivals_own,
        tuple(sorted(rows, key=lambda row: row.ssd_kg_per_tb)), (), tuple(warnings), 0.0,
    )  # fmt: skip


def saving(ours: Outcome, theirs: Outcome) -> float:
    """Return the share of their carbon that ours saves."""
    return 1.0 - ours.total_g / theirs.total_g


def answer_document(answer: CacheAnswer) -> dict[str, Any]:
    """Return the answer as JSON values."""
    demand, hours = answer.demand, answer.adaptive.hours
    counted = slice(demand.history, None)
    return {
        "objective": "carbon",
        "unit": "g CO2e",
        "eviction": answer.server.cache.eviction,
        "attainment_asked": answer.asked,
        "hours": [
            {
                "hour": hour,
                "size_tb": float(hours.size_tb[hour]),
                "g_per_kwh": float(demand.g_per_kwh[counted][hour]),
                "forecast_g_per_kwh": float(answer.rolled.forecast_g_per_kwh[hour]),
                "requests_per_s": float(demand.requests_per_s[counted][hour]),
                "forecast_requests_per_s": float(answer.rolled.forecast_rps[hour]),
                "requests": int(hours.requests[hour]),
                "attainment": float(hours.attainment[hour]),
                "power_w": float(hours.power_w[hour]),
            }
            for hour in range(len(hours.size_tb))
        ],
        "adaptive": outcome_document(answer.adaptive),
        "fixed": [outcome_document(rival) for rival in answer.rivals],
        "guarded_after_hours": list(answer.guarded_after),
        "sensitivity": [
            {
                "ssd_kg_per_tb": row.ssd_kg_per_tb,
                "adaptive": outcome_document(row.adaptive),
                "no_cache": outcome_document(row.none),
                "largest": outcome_document(row.full),
                "best_fixed": outcome_document(row.best_fixed),
                "saving_over_largest": saving(row.adaptive, row.full),
                "saving_over_no_cache": saving(row.adaptive, row.none),
                "saving_over_best_fixed": saving(row.adaptive, row.best_fixed),
            }
            for row in answer.sensitivity
        ],
        "tables": {
            "loads_rps": answer.tables.loads_rps.tolist(),
            "sizes_tb": answer.tables.sizes_tb.tolist(),
            "power_w": answer.tables.power_w.tolist(),
            "attainment": answer.tables.attainment.tolist(),
            "hit_ratio": answer.tables.hit_ratio.tolist(),
            "written_tb_per_request": answer.tables.written_tb_per_request.tolist(),
        },
        "assumptions": list(answer.assumptions),
        "warnings": list(answer.warnings),
        "seconds": answer.seconds,
    }


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON values."""
    return {
        "name": outcome.name,
        "mean_size_tb": float(outcome.hours.size_tb.mean()),
        "total_g": outcome.total_g,
        "operational_g": outcome.operational_g,
        "ssd_embodied_g": outcome.ssd_g,
        "other_embodied_g": outcome.other_g,
        "attainment": outcome.hours.share_in_time,
        "hit_ratio": outcome.hours.hit_ratio,
        "saved_prefill_s": outcome.hours.saved_s,
        "written_tb_per_hour": outcome.hours.written_tb_per_hour,
    }
