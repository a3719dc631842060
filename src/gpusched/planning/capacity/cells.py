"""From a question about instances over time to cells: a model in a region, its fleet, its requests."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.domain.scale import DAY_S, ScaledModel, ScaleSpec
from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.capacity.service import Service, measure_service
from gpusched.planning.forecast.band import backtest
from gpusched.planning.forecast.models import Model, forecaster
from gpusched.sim.fleet import Fleet, Pool
from gpusched.timing.iteration import timing_model
from gpusched.timing.memory import memory
from gpusched.traces.generate import generate
from gpusched.traces.rates import trace_from_rates
from gpusched.traces.read import read_trace
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
BUDGET_TOKENS = 2048
SAMPLE = 200_000
"""Requests of the history that capacity is measured with."""


@dataclass(frozen=True)
class Cell:
    """A model in a region."""

    model: int
    region: int
    trace: Trace
    """What is simulated, from time 0; ``class_id`` counts the tiers."""
    history: Trace
    """What came before, from time 0."""


@dataclass(frozen=True)
class Question:
    """All that scaling rests on."""

    spec: ScaleSpec
    cells: tuple[Cell, ...]
    """Models in order, the regions of each in order."""
    fleets: tuple[Fleet, ...]
    """One instance of each model."""
    services: tuple[Service, ...]
    """Of interactive requests, an entry a model."""
    series_tps: Floats
    """Prompt tokens a second of interactive requests, history and all, shape (models, regions,
    steps)."""
    deferred_tps: Floats
    """The same of deferrable ones."""
    first: int
    """Step at which the simulated part begins."""
    model_name: str
    model: Model
    """Of the forecast."""
    errors: dict[str, float]
    """Of the models tried on the history, percent; those that could not be tried are left out."""
    notes: tuple[str, ...]

    @property
    def interactive(self) -> NDArray[np.bool_]:
        """Which tiers are interactive."""
        return np.array([tier.deadline_s is None for tier in self.spec.tiers.values()])

    @property
    def duration_s(self) -> float:
        """Length of the simulated part."""
        return float((self.series_tps.shape[2] - self.first) * self.spec.forecast.step_s)


def fleet_of(served: ScaledModel, tiers: int) -> Fleet:
    """Return one instance of a model; with several tiers the more urgent one goes first.

    Raises:
        InfeasibleError: the model does not fit.
    """
    model, gpu, parallelism = (
        load_model(served.model),
        load_gpu(served.gpu),
        Parallelism(served.gpus),
    )
    engine = served.engine
    budget = engine.max_num_batched_tokens or max(BUDGET_TOKENS, engine.max_num_seqs)
    use = memory(
        model, gpu, parallelism, engine, weights_dtype=served.dtype,
        kv_cache_dtype=served.kv_cache_dtype, max_num_batched_tokens=budget,
    )  # fmt: skip
    blocks = use.kv_blocks(engine.block_size, engine.max_num_seqs)
    if blocks < 1:
        raise InfeasibleError(
            f"models: {served.model} leaves no room for KV cache on {served.gpus} x {served.gpu}; "
            "give an instance more GPUs or use a narrower weights_dtype"
        )
    timing = timing_model(
        model, gpu, parallelism, weights_dtype=served.dtype, kv_cache_dtype=served.kv_cache_dtype,
        framework=engine.framework,
    )  # fmt: skip
    batching = "priority" if engine.batching == "vllm" and tiers > 1 else engine.batching
    pool = Pool(
        served.model, timing.compile(max(8192, budget), max(1024, engine.max_num_seqs)), blocks,
        batching=batching, block_tokens=engine.block_size, max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=budget, gpus_per_replica=served.gpus,
    )  # fmt: skip
    return Fleet((pool,))


def prepare(
    spec: ScaleSpec, *, seed: int = 0, progress: Callable[[str], None] = lambda message: None
) -> Question:
    """Return the cells with their requests, measured capacities and the forecast's model.

    Raises:
        InputError: the demand cannot be read or is shorter than the history wanted.
        InfeasibleError: an instance cannot meet the objectives even alone.
    """
    step_s = spec.forecast.step_s
    notes: list[str] = []
    parts: list[Trace] = []
    for number, served in enumerate(spec.models):
        for place, region in enumerate(spec.regions):
            progress(f"requests of {served.model} in {region.name}")
            key = seed * 1009 + number * len(spec.regions) + place
            trace = _demand(spec, served.share * region.share, region.shift_h * 3600.0, key, notes)
            parts.append(_with_tiers(trace, spec, key))
    length_s = min(spec.demand.days * DAY_S, max(float(t.arrival_s[-1]) for t in parts) + 1.0)
    steps = int(length_s // step_s)
    first = round(spec.forecast.history_days * DAY_S / step_s)
    if steps - first < 2 or first < 12:
        raise InputError(
            f"forecast.history_days: the demand lasts {length_s / DAY_S:.3g} days and "
            f"{spec.forecast.history_days:g} of them come before what is simulated; leave at least "
            f"{2 * step_s:g} s to simulate and {12 * step_s:g} s of history"
        )
    shape = (len(spec.models), len(spec.regions), steps)
    interactive = np.array([tier.deadline_s is None for tier in spec.tiers.values()])
    series = np.stack([_tokens(t, interactive, steps, step_s) for t in parts]).reshape(shape)
    deferred = np.stack([_tokens(t, ~interactive, steps, step_s) for t in parts]).reshape(shape)
    start_s, end_s = first * step_s, steps * step_s
    cells = tuple(
        Cell(k // len(spec.regions), k % len(spec.regions), t.slice_time(start_s, end_s),
             t.slice_time(0.0, start_s))
        for k, t in enumerate(parts)
    )  # fmt: skip
    for cell in cells:
        if not len(cell.trace) or not len(cell.history):
            raise InputError("demand: a model and region has no requests; raise rate_scale")
    fleets = tuple(fleet_of(served, len(spec.tiers)) for served in spec.models)
    services = []
    for number, fleet in enumerate(fleets):
        past = next(c.history for c in cells if c.model == number)
        assert past.class_id is not None
        own = past.take(np.flatnonzero(interactive[past.class_id])[:SAMPLE])
        services.append(measure_service(fleet, own, spec.slo, seed=seed, progress=progress))
    name, model, errors = choose_model(spec, series[:, :, :first].sum(axis=(0, 1)), notes)
    return Question(
        spec, cells, fleets, tuple(services), series, deferred, first, name, model, errors,
        tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def choose_model(
    spec: ScaleSpec, history: Floats, notes: list[str]
) -> tuple[str, Model, dict[str, float]]:
    """Return the forecast's model: the one named, or of least error on the history."""
    per_day = round(DAY_S / spec.forecast.step_s)
    ahead = max(round(3600.0 / spec.forecast.step_s), 1)
    days = len(history) / per_day
    if days < 14:
        notes.append(f"history of {days:.3g} days: weeks are not told apart, only days")
    if days < 2:
        notes.append(
            "history under two days: no season is fitted; the last day or level is repeated"
        )
    if spec.forecast.model != "auto":
        named: str = spec.forecast.model
        return named, forecaster(named, per_day), {}
    errors: dict[str, float] = {}
    first = len(history) // 2
    for name in ("last-day", "last-week", "harmonic"):
        if name == "last-week" and days < 10:
            continue
        every = max((len(history) - first) // 60, 1)
        past = backtest(history, forecaster(name, per_day), ahead, first=first, every=every)
        errors[name] = past.mean_absolute_percent
    best = min(errors, key=lambda name: errors[name])
    return best, forecaster(best, per_day), errors


def _demand(spec: ScaleSpec, share: float, shift_s: float, seed: int, notes: list[str]) -> Trace:
    """Return a cell's requests: a share of the demand, its days turned round."""
    demand = spec.demand
    if demand.rates is not None:
        trace = trace_from_rates(
            Path(demand.rates), group=demand.group, profile=demand.profile,
            lengths=None if demand.lengths is None else Path(demand.lengths),
            rate_scale=demand.rate_scale * share, shift_s=shift_s,
            end_s=demand.days * DAY_S, seed=seed,
        )  # fmt: skip
    elif demand.trace is not None:
        trace = read_trace(Path(demand.trace))
        if demand.rate_scale != 1.0:
            notes.append("rate_scale thins or repeats a trace's requests at their times")
        count = np.random.default_rng([seed, 5]).poisson(demand.rate_scale * share, len(trace))
        if demand.rate_scale * share == 1.0:
            count[:] = 1
        trace = trace.take(np.repeat(np.arange(len(trace)), count))
        if shift_s:
            span = float(trace.arrival_s[-1])
            turned = (trace.arrival_s + shift_s) % span
            trace = trace.take(np.argsort(turned, kind="stable"))
            trace = replace(trace, arrival_s=np.sort(turned))
    else:
        assert demand.rate_rps is not None
        skipped_s = -shift_s % (7 * DAY_S)
        whole = generate(
            demand.profile, demand.rate_rps * demand.rate_scale * share,
            demand.days * DAY_S + skipped_s, arrivals=demand.arrivals, seed=seed,
        )  # fmt: skip
        trace = whole.slice_time(skipped_s)
    notes.extend(trace.notes)
    return replace(trace, prefix=None, session_id=None, round=None, think_s=None)


def _with_tiers(trace: Trace, spec: ScaleSpec, seed: int) -> Trace:
    names = tuple(spec.tiers)
    if trace.class_id is not None and set(trace.class_names) <= set(names):
        of = np.array([names.index(name) for name in trace.class_names], np.int16)
        return replace(trace, class_id=of[trace.class_id], class_names=names)
    shares = [tier.share for tier in spec.tiers.values()]
    drawn = np.random.default_rng([seed, 1]).choice(len(names), len(trace), p=shares)
    return replace(trace, class_id=drawn.astype(np.int16), class_names=names)


def _tokens(trace: Trace, tiers: NDArray[np.bool_], steps: int, step_s: float) -> Floats:
    """Prompt tokens a second of some tiers, by step."""
    assert trace.class_id is not None
    own = tiers[trace.class_id] & (trace.arrival_s < steps * step_s)
    at = (trace.arrival_s[own] // step_s).astype(np.int64)
    return np.bincount(at, weights=trace.prompt_tokens[own], minlength=steps) / step_s
