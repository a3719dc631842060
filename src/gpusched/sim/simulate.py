"""Simulate a trace on a fleet."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import compiled_for, is_cached
from gpusched.errors import InputError
from gpusched.policies.admission.policy import GATED, STAGGERED
from gpusched.policies.batching.discipline import LOOK_AHEAD, OPEN, Discipline, discipline
from gpusched.policies.custom import MAX_PARAMETERS, Compiled, unused
from gpusched.policies.lengths.predictors import parse_predictor, predict
from gpusched.policies.routing.choice import PER_ROUND, PREFIX_AFFINITY, SESSION_AFFINITY
from gpusched.policies.routing.policy import RoutingPolicy
from gpusched.policies.views import Engine, Replica, Request
from gpusched.policies.views import Fleet as FleetView
from gpusched.sim import kernel, state
from gpusched.sim.coupled import run_coupled
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.front import front_of
from gpusched.sim.gaps import BINS, GAP_TOTALS, GapHistogram
from gpusched.sim.grouping import groups_for
from gpusched.sim.intervals import Intervals
from gpusched.sim.overhead import ClosedLoop as ClosedLoop
from gpusched.sim.overhead import with_overhead
from gpusched.sim.reestimation import Reestimation
from gpusched.sim.result import Floats, PoolUse, RoundLog, SimulationResult
from gpusched.sim.rounds.loop import run_rounds
from gpusched.sim.rounds.setup import NO_PREFIX_TOKENS, needs_rounds, rounds_of
from gpusched.timing.compiled import CompiledTiming
from gpusched.timing.measured import NO_OVERHEAD
from gpusched.traces.trace import Trace

SERIES_BINS = 1024
EVENTS_PER_SLICE = 2_000_000

ROLES = {"mixed": state.MIXED, "prefill": state.PREFILL_ONLY, "decode": state.DECODE_ONLY}


def simulate(
    fleet: Fleet,
    trace: Trace,
    *,
    closed_loop: ClosedLoop | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
    interval_s: float | None = None,
) -> SimulationResult:
    """Return what happens to every request of ``trace`` on ``fleet``.

    The answer is exact: the start and the end of every iteration are those of a step-by-step
    simulation, to rounding. ``progress`` is called now and then with the share of requests done.
    With ``interval_s`` the result also says how busy the pools were in each interval.

    Raises:
        InputError: the trace is empty or its block ids do not fit the engines' KV blocks.
    """
    if fleet.overhead != NO_OVERHEAD:
        inside = partial(simulate, seed=seed, progress=progress, interval_s=interval_s)
        return with_overhead(inside, fleet, trace, closed_loop)
    s, rules, firsts, notes = build(fleet, trace, closed_loop=closed_loop, seed=seed)
    loop = run_rounds if s.rounds is not None else kernel.run if s.coupled is None else run_coupled
    announce_compilation(loop)
    if not hasattr(loop, "signatures"):
        s = attribute_access(s)
    run = compiled_for(loop, s, rules, EVENTS_PER_SLICE, math.inf)
    chosen = [(pool, discipline(pool.batching)) for pool in fleet.pools]
    learning = Reestimation([(p, d, int(e)) for (p, d), e in zip(chosen, firsts, strict=True)], s)
    intervals = Intervals(interval_s, [pool.lanes for pool in fleet.pools], firsts)
    started = time.perf_counter()
    while True:
        status = run(s, rules, EVENTS_PER_SLICE, min(learning.due_s, intervals.due_s))
        if status == kernel.DUE:
            if intervals.due_s <= learning.due_s:
                intervals.update(s)
            else:
                learning.update(s)
        elif status != kernel.UNDER_WAY:
            break
        if progress is not None:
            progress(1.0 - int(s.counters[state.REMAINING]) / len(trace))
    if status == kernel.FAULTED:
        raise InputError(fault(fleet, s))
    if status == kernel.STALLED:
        raise InputError(stall(fleet, s))
    wall_s = time.perf_counter() - started
    result = collect(fleet, trace, s, firsts, wall_s, notes + learning.notes)
    return replace(result, busy_s=intervals.finish(s)) if interval_s is not None else result


def attribute_access(s: state.State) -> state.State:
    """Return the state with records whose fields are attributes in plain Python too, for debugging
    with ``NUMBA_DISABLE_JIT=1``."""

    def records(part: Any) -> dict[str, Any]:
        return {
            name: array.view(np.recarray)
            for name, array in part._asdict().items()
            if isinstance(array, np.ndarray) and array.dtype.names
        }

    if s.rounds is not None:
        s = s._replace(rounds=s.rounds._replace(**records(s.rounds)))
    return s._replace(**records(s))


def fault(fleet: Fleet, s: state.State) -> str:
    """Return what went wrong in a policy; a user's function is called once more as plain Python."""
    if s.counters[state.FAULT] == state.THRASHING:
        names = ", ".join(sorted({pool.batching for pool in fleet.pools}))
        return (
            f"batching policy {names} evicts request {s.counters[state.FAULTY]} again and again and "
            "never finishes it; raise its margin or let evicted requests keep their progress"
        )
    if s.counters[state.FAULT] == state.HELD_FOREVER:
        return (
            f"admission policy {fleet.admission} holds request {s.counters[state.FAULTY]} again and "
            "again and never lets it in; return 0 in the end, or infinity to reject it"
        )
    row, r = int(s.counters[state.FAULT]) - 1, int(s.counters[state.FAULTY])
    function = custom_functions(fleet)[HOOKS[row]]
    request = s.requests[r]
    engine = s.engines[int(request["engine"])]
    free = int(engine["free"] + engine["evictable"] * engine["prefix_blocks"])
    shift = int(engine["block_shift"])
    views = {
        "request": Request(
            float(request["arrival_s"]),
            *(int(request[n]) for n in ("prompt", "produced", "predicted", "priority")),
        ),
        "engine": Engine(
            float(engine["end_s"]), int(engine["running"]), int(engine["max_seqs"]),
            free << shift, int(engine["kv_blocks"]) << shift,
        ),
        "replica": Replica(0, int(s.load_requests[0]), int(s.load_tokens[0]), False),
        "fleet": FleetView(float(request["arrival_s"]), len(s.engines), int(s.load_requests.sum()),
                           int(s.load_tokens.sum())),
    }  # fmt: skip
    try:
        function.function(*(views[v] for v in function.views), *function.parameters)
        happened = "returned nan, which is no number,"
    except Exception as error:
        happened = f"raised {type(error).__name__}: {error}"
    return f"policy {function.name} {happened} for request {r} ({views['request']})"


def stall(fleet: Fleet, s: state.State) -> str:
    """Return which requests a policy keeps waiting for ever."""
    waiting = np.flatnonzero(s.requests["state"] == state.WAITING)
    names = ", ".join(sorted({pool.batching for pool in fleet.pools}))
    first = int(waiting[0]) if len(waiting) else -1
    return (
        f"batching policy {names} keeps {len(waiting)} requests waiting for ever, the first of them "
        f"request {first}; a gate must let a request start when nothing runs"
    )


def announce_compilation(run: Callable[..., int]) -> None:
    """Tell the user why the first run on a machine takes longer."""
    if not is_cached(run):
        print(
            "compiling the simulator (once on this machine, half a minute or more) ...",
            file=sys.stderr,
            flush=True,
        )


def engine_pools(fleet: Fleet) -> list[Pool]:
    """Return the pool of each engine, those that take arrivals first."""
    entry = [pool for pool in fleet.pools if pool.role != "decode"]
    decode = [pool for pool in fleet.pools if pool.role == "decode"]
    return [pool for pool in entry + decode for _ in range(pool.lanes)]


def expected_output_tokens(trace: Trace) -> int:
    """Output length a router expects of every request: the trace's mean."""
    return max(round(float(trace.output_tokens.mean())), 1)


def build(
    fleet: Fleet, trace: Trace, *, closed_loop: ClosedLoop | None, seed: int
) -> tuple[state.State, state.Rules, NDArray[np.int64], tuple[str, ...]]:
    """Lay out the arrays of a run, the index of each pool's first engine, and what to tell."""
    if not len(trace):
        raise InputError(f"{trace.name}: the trace has no requests")
    if closed_loop is not None and closed_loop.users < 1:
        raise InputError(f"a closed loop needs at least one user, got {closed_loop.users}")
    lanes = engine_pools(fleet)
    ordered = list(dict.fromkeys(map(id, lanes)))
    pools = {id(pool): pool for pool in fleet.pools}
    firsts = np.cumsum([0] + [pools[key].lanes for key in ordered])[:-1]
    first_of = dict(zip(ordered, firsts, strict=True))

    n = len(trace)
    requests = np.zeros(n, state.REQUEST)
    requests["arrival_s"] = trace.arrival_s
    requests["admitted_s"] = np.nan
    requests["prompt"] = trace.prompt_tokens
    requests["output"] = trace.output_tokens
    requests["stored"] = 0 if trace.stored_tokens is None else trace.stored_tokens
    requests["follower"] = state.NONE
    if trace.think_s is not None and trace.session_id is not None and trace.round is not None:
        followers = session_followers(trace.session_id, trace.round)
        requests["follower"] = followers
        requests["arrival_s"][followers[followers >= 0]] = np.nan
    prefix = trace.prefix
    caching = any(pool.prefix_caching and pool.role != "decode" for pool in fleet.pools)
    routing, decode_routing, admission = fleet.policies
    knows_prefixes = routing.kind == PREFIX_AFFINITY or routing.score is not None
    if not caching and not knows_prefixes:
        prefix = None
    n_blocks = prefix.n_blocks if prefix is not None else 0

    keeps = routing.kind == PER_ROUND
    disciplines = {id(pool): discipline(pool.batching) for pool in fleet.pools}
    disaggregated = any(pool.role == "decode" for pool in fleet.pools)
    requests["predicted"] = predictions(trace, list(disciplines.values()), seed)
    requests["priority"] = 0 if trace.class_id is None else trace.class_id
    groups = {
        id(pool): groups_for(pool, disciplines[id(pool)], trace, requests["predicted"], len(lanes))
        for pool in fleet.pools
    }
    engines = np.zeros(len(lanes), state.ENGINE)
    timings: dict[int, int] = {}
    compiled: list[CompiledTiming] = []
    for index, (engine, pool) in enumerate(zip(engines, lanes, strict=True)):
        if id(pool.timing) not in timings:
            timings[id(pool.timing)] = len(compiled)
            compiled.append(pool.timing)
        engine["pool"] = fleet.pools.index(pool)
        engine["units"] = pool.data_parallel
        engine["unit"] = (index - first_of[id(pool)]) % pool.data_parallel
        engine["timing"] = timings[id(pool.timing)]
        engine["role"] = ROLES[pool.role]
        engine["kv_blocks"] = engine["free"] = pool.kv_blocks // pool.pipeline_stages
        engine["block_shift"] = pool.block_tokens.bit_length() - 1
        engine["max_seqs"] = max(pool.max_num_seqs // pool.pipeline_stages, 1)
        engine["max_batched_tokens"] = pool.max_num_batched_tokens
        set_discipline(engine, disciplines[id(pool)])
        engine["stepwise"] = (
            pool.data_parallel > 1
            or (disaggregated and pool.role == "mixed")
            or admission.kind in (STAGGERED, GATED)
            or (keeps and pool.role == "decode")
        )
        if keeps and pool.role == "decode":
            engine["prefix_tokens"], engine["prefix_blocks"] = NO_PREFIX_TOKENS, 1
        if prefix is not None and pool.prefix_caching and pool.role != "decode":
            if prefix.block_tokens % pool.block_tokens:
                raise InputError(
                    f"{trace.name}: prefix blocks of {prefix.block_tokens} tokens do not divide "
                    f"into KV blocks of {pool.block_tokens} tokens (pool {pool.name})"
                )
            engine["prefix_tokens"] = prefix.block_tokens
            engine["prefix_blocks"] = prefix.block_tokens // pool.block_tokens
    for field in ("running_head", "running_tail", "waiting_head", "waiting_tail"):
        engines[field] = state.NONE
    engines["prefill_head"] = engines["lru_head"] = engines["lru_tail"] = state.NONE

    n_groups = max(len(group.ends) for group in groups.values())
    group_ends = np.full((len(lanes), n_groups), np.iinfo(np.int32).max, np.int64)
    group_thresholds = np.ones((len(lanes), n_groups), np.int64)
    group_caps = np.zeros((len(lanes), n_groups), np.int64)
    for e, pool in enumerate(lanes):
        group = groups[id(pool)]
        count = len(group.ends)
        engines["groups"][e], engines["hold_s"][e] = count, group.hold_s
        engines["max_seqs"][e] = group.seats
        group_ends[e, :count] = group.ends
        group_thresholds[e, :count] = group.thresholds
        group_caps[e, :count] = group.caps
    ahead = any(d.gate == LOOK_AHEAD for d in disciplines.values())
    custom = custom_functions(fleet)
    sessions = 0
    if routing.kind == SESSION_AFFINITY and trace.session_id is not None:
        ids, requests["session"] = np.unique(trace.session_id, return_inverse=True)
        sessions = len(ids)
    rounds = rounds_of(routing, trace, lanes, requests) if needs_rounds(fleet) else None
    if rounds is not None and trace.stored_tokens is not None:
        raise InputError(
            f"{trace.name}: prompts found in a store outside the engines do not go with policies that "
            "place or order rounds one by one (ampd, on-time); choose another routing and batching"
        )
    seats = int(engines["max_seqs"].max())
    windowed = any(timing.window > 0 for timing in compiled)
    block_tokens = max(pool.block_tokens for pool in fleet.pools)
    scalars, tokens_s, decode_s, logits_s, experts_s = stack_timings(compiled, seats)
    cache = np.zeros((len(lanes), max(n_blocks if caching else 0, 1)), state.CACHED_BLOCK)
    cache["holders"] = -1
    entry_engines = sum(pool.role != "decode" for pool in lanes)
    makes_arrivals = (
        closed_loop is not None
        or admission.hold is not None
        or entry_engines < len(lanes)
        or bool((requests["follower"] >= 0).any())
    )
    coupled = admission.kind in (STAGGERED, GATED) or bool((engines["units"] > 1).any())
    front = front_of(fleet, trace, lanes, entry_engines) if coupled else None
    leaves = 1 << (len(lanes) - 1).bit_length()
    timers_s = np.full(leaves, np.inf)
    winners = np.zeros(2 * leaves, np.int64)
    winners[leaves:] = np.arange(leaves)
    for node in range(leaves - 1, 0, -1):
        winners[node] = winners[2 * node]
    if leaves == 1:
        winners[1] = 0
    offsets, block_ids = np.zeros(n + 1, np.int64), np.zeros(1, np.int32)
    if prefix is not None and n_blocks:
        offsets = prefix.offsets.astype(np.int64, copy=False)
        block_ids = prefix.block_ids.astype(np.int32, copy=False)
    s = state.State(
        requests=requests,
        engines=engines,
        finishes=np.zeros((len(lanes), seats), np.int64),
        crossings=np.zeros((len(lanes), seats if windowed else 1), np.int64),
        phases=np.zeros((len(lanes), block_tokens), np.int64),
        fresh=np.zeros((len(lanes), seats), np.int32),
        ends=np.zeros((len(lanes), seats if ahead else 1), np.int64),
        bases=np.zeros((len(lanes), seats if ahead else 1), np.int64),
        group_heads=np.full((len(lanes), n_groups), state.NONE, np.int64),
        group_tails=np.full((len(lanes), n_groups), state.NONE, np.int64),
        group_counts=np.zeros((len(lanes), n_groups), np.int64),
        group_sizes=np.zeros((len(lanes), n_groups), np.int64),
        group_ends=group_ends,
        group_thresholds=group_thresholds,
        group_caps=group_caps,
        cache=cache,
        prefix_offsets=offsets,
        prefix_ids=block_ids,
        scalars=scalars,
        tokens_s=tokens_s,
        decode_s=decode_s,
        logits_s=logits_s,
        experts_s=experts_s,
        gap_counts=np.zeros(BINS, np.int64),
        gap_totals=np.zeros(1, GAP_TOTALS),
        kv_series=np.zeros((len(fleet.pools), SERIES_BINS)),
        series_width_s=np.full(1, 1e-3),
        load_requests=np.zeros(len(lanes), np.int64),
        load_tokens=np.zeros(len(lanes), np.int64),
        ready_s=np.array([pool.startup_s for pool in lanes], np.float64),
        owners=np.full(max(n_blocks, 1), -1, np.int32),
        session_owners=np.full(sessions, state.NONE, np.int32),
        think_s=trace.think_s if trace.think_s is not None else np.zeros(0),
        front=front.record if front else None,
        window=front.window if front else None,
        classes=front.classes if front else None,
        class_prefills=np.zeros(len(front.classes.waiting) if front else 1, np.int64),
        scratch=np.zeros(len(lanes)),
        by_tokens=np.arange(len(lanes)),
        timers_s=timers_s,
        winners=winners,
        pending_s=np.zeros(n if makes_arrivals else 1),
        pending=np.zeros(n if makes_arrivals else 1, np.int32),
        counters=np.zeros(state.N_COUNTERS, np.int64),
        rank=custom["rank"].native if "rank" in custom else unused("batching"),
        admits=custom["admits"].native if "admits" in custom else unused("batching"),
        score=custom["score"].native if "score" in custom else unused("routing"),
        hold=custom["hold"].native if "hold" in custom else unused("admission"),
        parameters=np.stack(
            [custom[n].row() if n in custom else np.zeros(MAX_PARAMETERS) for n in HOOKS]
        ),
        coupled=True if coupled else None,
        rounds=rounds,
    )
    s.counters[state.REMAINING] = n
    rules = state.Rules(
        routing=router_of(routing),
        decode_routing=router_of(decode_routing),
        admission=admission.kind,
        seed=seed,
        entry_engines=entry_engines,
        expected_output_tokens=expected_output_tokens(trace),
        closed_loop=int(closed_loop is not None),
        closed_loop_think_s=float(closed_loop.think_s) if closed_loop else 0.0,
        link_latency_s=float(fleet.link.latency_s),
        link_token_s=float(fleet.link.token_s),
    )
    if closed_loop is not None:
        roots = np.flatnonzero(~np.isnan(requests["arrival_s"]))[: closed_loop.users]
        s.pending_s[: len(roots)] = 0.0
        s.pending[: len(roots)] = roots
        s.counters[state.PENDING] = len(roots)
        s.counters[state.NEXT_ROW] = roots[-1] + 1
    notes = tuple(dict.fromkeys(group.note for group in groups.values() if group.note))
    if front and front.note:
        notes += (front.note,)
    if routing.kind == SESSION_AFFINITY and not sessions:
        notes += (f"{routing.name}: the trace has no sessions; the least loaded replica is taken",)
    if keeps and not (requests["follower"] >= 0).any():
        notes += (
            f"{routing.name}: no request of the trace follows an answer (a session with think times); "
            "no history is kept",
        )
    return s, rules, np.array([first_of[id(pool)] for pool in fleet.pools], np.int64), notes


def router_of(policy: RoutingPolicy) -> state.Router:
    """Return a routing policy as the kernels take it."""
    return state.Router(policy.kind, policy.slack_requests, policy.factor, policy.outlier_factor)


HOOKS = ("rank", "admits", "score", "hold")
"""A user's functions, in the order of ``state.RANK`` and those after it."""


def custom_functions(fleet: Fleet) -> dict[str, Compiled]:
    """Return the user's functions among the fleet's policies.

    Raises:
        InputError: two pools use different ones.
    """
    routing, decode_routing, admission = fleet.policies
    disciplines = [discipline(pool.batching) for pool in fleet.pools]
    candidates = {
        "rank": [d.rank for d in disciplines],
        "admits": [d.admits for d in disciplines],
        "score": [routing.score, decode_routing.score],
        "hold": [admission.hold],
    }
    found: dict[str, Compiled] = {}
    for name, functions in candidates.items():
        own = set(functions) - {None}
        if len(own) > 1:
            raise InputError(
                "a fleet can use one policy of the user's own of each kind, got "
                + " and ".join(sorted(f.name for f in own if f is not None))
            )
        if own:
            function = own.pop()
            assert function is not None
            found[name] = function
    return found


def set_discipline(engine: np.void, chosen: Discipline) -> None:
    """Write a batching discipline into an engine's settings."""
    engine["forming"] = chosen.forming
    engine["order"] = chosen.order
    engine["gate"] = chosen.gate
    engine["eviction"] = chosen.eviction
    engine["preemptive"] = chosen.preemptive
    engine["reserve_prompt"] = chosen.reserve_prompt
    engine["restart"] = chosen.restart
    engine["nested"] = chosen.name == "nested-wait"
    engine["strict"] = chosen.start == "strict"
    engine["skip"] = chosen.skip
    engine["ageing_tokens_per_s"] = chosen.ageing_tokens_per_s
    engine["quantum_tokens"] = chosen.quantum_tokens
    engine["clear_probability"] = chosen.clear_probability
    blocks = int(engine["kv_blocks"])
    engine["spare_blocks"] = math.ceil(chosen.margin * blocks) if chosen.gate == OPEN else 0
    engine["limit_tokens"] = int((1.0 - chosen.margin) * blocks) << int(engine["block_shift"])
    if chosen.chunk_tokens:
        engine["max_batched_tokens"] = max(chosen.chunk_tokens, int(engine["max_seqs"]))


def predictions(trace: Trace, disciplines: list[Discipline], seed: int) -> NDArray[np.int32]:
    """Return the predicted output length of every request; zeros if no discipline wants any."""
    wanted = {d.predictor for d in disciplines if d.predictor is not None}
    if not wanted:
        return np.zeros(len(trace), np.int32)
    if len(wanted) > 1:
        raise InputError(f"pools with different length predictors: {', '.join(sorted(wanted))}")
    return predict(trace, parse_predictor(wanted.pop()), seed)


def session_followers(
    session_id: NDArray[np.int32], rounds: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Return the row of each row's next round, or -1."""
    order = np.lexsort((np.arange(len(rounds)), rounds, session_id))
    same = session_id[order[1:]] == session_id[order[:-1]]
    followers = np.full(len(rounds), state.NONE, np.int32)
    followers[order[:-1][same]] = order[1:][same]
    return followers


def stack_timings(
    timings: list[CompiledTiming], seats: int
) -> tuple[NDArray[np.void], Floats, Floats, Floats, Floats]:
    """Lay the timing models' scalars and tables side by side, one row a model."""
    scalars = np.zeros(len(timings), state.TIMING_SCALARS)
    for row, timing in zip(scalars, timings, strict=True):
        for field in state.TIMING_SCALARS.names or ():
            if field not in ("max_tokens", "max_group_tokens"):
                row[field] = getattr(timing, field)
        row["max_tokens"] = len(timing.tokens_s) - 1
        row["max_group_tokens"] = len(timing.experts_s) - 1
        if min(len(timing.decode_s), len(timing.logits_s)) <= seats:
            raise InputError(
                f"the timing model covers {len(timing.decode_s) - 1} sequences, "
                f"the engines may run {seats}; lower max_num_seqs"
            )
    tokens_s = np.zeros((len(timings), max(len(timing.tokens_s) for timing in timings)))
    decode_s = np.zeros((len(timings), seats + 1))
    logits_s = np.zeros((len(timings), seats + 1))
    experts_s = np.zeros((len(timings), max(len(timing.experts_s) for timing in timings)))
    for i, timing in enumerate(timings):
        experts_s[i, : len(timing.experts_s)] = timing.experts_s
        tokens_s[i, : len(timing.tokens_s)] = timing.tokens_s
        decode_s[i] = timing.decode_s[: seats + 1]
        logits_s[i] = timing.logits_s[: seats + 1]
    return scalars, tokens_s, decode_s, logits_s, experts_s


def collect(
    fleet: Fleet,
    trace: Trace,
    s: state.State,
    firsts: NDArray[np.int64],
    wall_s: float,
    notes: tuple[str, ...],
) -> SimulationResult:
    """Turn the arrays of a finished run into its result."""
    requests = s.requests
    rejected = requests["state"] == state.REJECTED
    engines = s.engines
    uses = []
    for pool, first in zip(fleet.pools, firsts, strict=True):
        own = engines[first : first + pool.lanes]
        share = pool.replicas / pool.lanes
        uses.append(
            PoolUse(
                name=pool.name,
                role=pool.role,
                replicas=pool.replicas,
                gpus=pool.replicas * pool.gpus_per_replica,
                iterations=int(own["iterations"].sum()),
                busy_s=float(own["busy_s"].sum()) * share,
                prefill_busy_s=float(own["prefill_busy_s"].sum()) * share,
                prompt_tokens=int(own["prompt_tokens"].sum()),
                output_tokens=int(own["output_tokens"].sum()),
                kv_peak=float((own["peak_blocks"] / own["kv_blocks"]).max()),
            )
        )
    finish_s = np.where(rejected, np.nan, requests["last_s"])
    makespan_s = float(np.nanmax(np.maximum(finish_s, requests["arrival_s"]), initial=0.0))
    width_s = float(s.series_width_s[0])
    bins = max(min(int(np.ceil(makespan_s / width_s)), SERIES_BINS), 1)
    edges = np.minimum(np.arange(bins + 1) * width_s, max(makespan_s, 1e-9))
    capacity = np.array(
        [pool.replicas * pool.data_parallel * pool.kv_blocks for pool in fleet.pools], np.float64
    )
    kv_use = s.kv_series[:, :bins] / (capacity[:, None] * np.maximum(np.diff(edges), 1e-12))
    replica_of = np.zeros(len(engines), np.int32)
    base = 0
    for pool, first in zip(fleet.pools, firsts, strict=True):
        lanes = np.arange(pool.lanes)
        replica_of[first : first + pool.lanes] = base + lanes * pool.replicas // pool.lanes
        base += pool.replicas
    return SimulationResult(
        arrival_s=requests["arrival_s"].copy(),
        admitted_s=requests["admitted_s"].copy(),
        first_token_s=np.where(rejected, np.nan, requests["first_s"]),
        finish_s=finish_s,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        cached_tokens=requests["cached"].copy(),
        preemptions=requests["preemptions"].copy(),
        replica=replica_of[requests["engine"]],
        rejected=rejected,
        class_id=trace.class_id,
        gaps=GapHistogram(
            s.gap_counts, float(s.gap_totals["total_s"][0]), float(s.gap_totals["max_s"][0])
        ),
        pools=tuple(uses),
        series_s=edges,
        kv_use=kv_use,
        makespan_s=makespan_s,
        wall_s=wall_s,
        notes=notes,
        rounds=round_log(s),
    )


def round_log(s: state.State) -> RoundLog | None:
    """Return how the rounds of sessions were placed, where they were."""
    if s.rounds is None or not s.rounds.settings[0]["keeps"]:
        return None
    return RoundLog(
        branch=s.rounds.branch,
        history_tokens=s.rounds.history,
        evicted=s.rounds.evicted,
        evictions=int(s.rounds.workers["evictions"].sum()),
    )
