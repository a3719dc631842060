"""The kernel's state for machines, a placement and requests."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.policies.routing.iwrr import IWRR, carried_loads, has_flow
from gpusched.policies.routing.pipelines import PipelineRouting
from gpusched.sim.gaps import BINS, GAP_TOTALS
from gpusched.sim.pipelines import state as records
from gpusched.sim.pipelines.edges import compatible, link_shares, without_dead_ends
from gpusched.sim.pipelines.limits import BatchLimits
from gpusched.sim.pipelines.state import NONE, SERIES_BINS, State
from gpusched.timing.layers import LayerProfile
from gpusched.timing.machines import Machines, Placement
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FIRST_JOBS = 256


@dataclass(frozen=True, slots=True)
class OfflineFeed:
    """A closed loop: each answer may make way for another request."""

    initial: int = 20
    """Requests at the start, a tenth of a second apart."""
    high_water: float | None = 0.8
    """After each prompt and each answer another request comes if, in no layer, a greater share of
    the KV cache is reserved; None: exactly one comes after each answer."""
    delay_s: float = 0.1
    drop: bool = False
    """Whether a request that finds no pipeline at once is rejected instead of waiting."""


@dataclass(frozen=True)
class Setting:
    """What a simulation is of, beside its requests."""

    machines: Machines
    placement: Placement
    routing: PipelineRouting
    partial_inference: bool
    limits: BatchLimits
    mean_output_tokens: float
    copy_bytes_per_s: float
    """Rate at which received activations are copied to the GPU."""
    warmup_s: float
    seed: int
    offline: OfflineFeed | None


def build(setting: Setting, trace: Trace) -> State:
    """Return the state before the first event; ``connect`` then opens edges."""
    machines, placement, limits = setting.machines, setting.placement, setting.limits
    n = len(machines.names)
    edges, edges_at, queues, first_queue = _edges_and_queues(setting)
    nodes = np.zeros(n + 1, records.NODE)
    nodes["end"][:n] = placement.first + placement.count
    nodes["layers"][:n] = placement.count
    nodes["layers"][n] = 1
    nodes["kind"][:n] = machines.kind_of
    nodes["queue"] = first_queue[:-1]
    nodes["segments"] = np.diff(first_queue)
    for field in ("way_head", "way_tail", "batch_head", "batch_tail"):
        nodes[field] = NONE
    nodes["segment"] = nodes["segments"] - 1
    for field in ("prompt_requests", "prompt_tokens", "decode_requests", "decode_context"):
        nodes[field][:n] = getattr(limits, field)
    for node in range(n):
        if placement.count[node]:
            held = machines.kinds[machines.kind_of[node]].kv_tokens[placement.count[node] - 1]
            nodes["kv_capacity"][node] = held * placement.count[node]
    nodes["finish_s"] = math.inf

    most_prompt = int((trace.prompt_tokens + trace.output_tokens).max(initial=1))
    prompt_caps = limits.prompt_tokens[placement.count > 0]
    table = max(most_prompt, min(int(prompt_caps.max(initial=1)), most_prompt * 1000))
    decodes = int(limits.decode_requests[placement.count > 0].max(initial=1))
    decodes = min(decodes, len(trace))
    requests = np.zeros(len(trace), records.REQUEST)
    requests["arrival_s"] = np.nan if setting.offline else trace.arrival_s
    for field in ("dispatched_s", "first_s", "finish_s"):
        requests[field] = np.nan
    requests["prompt_tokens"] = trace.prompt_tokens
    requests["output_tokens"] = trace.output_tokens
    requests["next"] = NONE

    g = np.zeros(1, records.GLOBALS)
    routing, offline = setting.routing, setting.offline
    g["warmup_s"] = setting.warmup_s
    g["policy"] = routing.kind
    g["whole_route"] = routing.kind == IWRR
    g["seed"] = setting.seed
    g["mask_kv"] = routing.mask_kv
    g["kv_high_water"] = routing.kv_high_water
    g["output_share"] = routing.output_share
    g["mean_output_tokens"] = setting.mean_output_tokens
    g["smoothing"] = routing.smoothing
    g["copy_s_per_token"] = machines.activation_bytes / setting.copy_bytes_per_s
    g["layers"] = machines.layers
    g["waiting_head"] = g["waiting_tail"] = NONE
    g["bin_s"] = 1.0
    if offline is not None:
        g["closed_loop"] = 1
        g["by_usage"] = offline.high_water is not None
        g["drop"] = offline.drop
        g["feed_high_water"] = offline.high_water or 0.0
        g["feed_delay_s"] = offline.delay_s
        g["initial"] = g["issued"] = min(offline.initial, len(trace))

    places = 1 << max((n + 1 - 1).bit_length(), 1)
    m = len(edges)
    jobs, routes = _jobs(min(FIRST_JOBS, max(len(trace), 1)), n)
    return State(
        g=g, nodes=nodes, queues=queues, jobs=jobs, routes=routes, edges=edges, edges_at=edges_at,
        usable=np.zeros(m, np.bool_), open_=np.zeros(m, np.bool_), weight=np.zeros(m),
        step=np.zeros(m), load=np.zeros(m), old_load=np.zeros(n + 1), mean_s=np.full(m, routing.initial_s),
        priority=np.full(m, routing.initial_s), length=np.zeros(m), requests=requests,
        due_s=np.zeros(len(trace) if offline else 1),
        prompt_s=_layer_times(machines.kinds, "prompt", table),
        decode_s=_layer_times(machines.kinds, "decode", decodes),
        next_s=np.full(places, math.inf), winner=_leaves(places),
        layer_free=np.zeros(machines.layers), layer_total=np.zeros(machines.layers),
        gap_counts=np.zeros(BINS, np.int64), gap_totals=np.zeros(1, GAP_TOTALS),
        busy=np.zeros((n, SERIES_BINS)), kv=np.zeros((n, SERIES_BINS)),
        tokens=np.zeros(SERIES_BINS),
    )  # fmt: skip


def connect(state: State, setting: Setting, up: Flags, flows: Floats | None) -> None:
    """Open the edges between nodes that are up, and spread prompts by new flows (IWRR only).

    Loads carry over; an edge that loses its flow keeps its bandwidth for the requests on it.
    """
    machines = setting.machines
    n = len(machines.names)
    origin, to = state.edges["origin"], state.edges["to"]
    matrix = np.zeros((n + 1, n + 1), np.bool_)
    matrix[origin, to] = True
    use = without_dead_ends(matrix, up)
    weight = np.zeros(len(origin))
    weighted = setting.routing.kind == IWRR
    if weighted:
        assert flows is not None
        weight = np.where(use[origin, to], flows[origin, to], 0.0)
        totals = np.bincount(origin, weight, n + 1)
        use[origin, to] &= [has_flow(w, t) for w, t in zip(weight, totals[origin], strict=True)]
        use = without_dead_ends(use, up)
        for place in range(n + 1):
            own = slice(state.edges_at[place], state.edges_at[place + 1])
            state.load[own] = carried_loads(state.load[own], state.weight[own], weight[own])
    state.weight[:] = weight
    state.step[:] = 0.0
    np.divide(1.0, weight, out=state.step, where=weight > 0)
    state.usable[:] = use[origin, to]
    shares = link_shares(machines, use, flows if weighted else None)[origin, to]
    of_front = (origin == n) | (to == n)
    size = machines.token_bytes + np.where(of_front, 0.0, machines.activation_bytes)
    known = state.edges["s_per_token"] > 0
    state.edges["s_per_token"] = np.where(
        state.usable | ~known, size / shares, state.edges["s_per_token"]
    )
    state.nodes["up"][:n] = up & (setting.placement.count > 0)
    state.g["longest_prompt"] = _longest_prompt(state, use)


def more_jobs(state: State) -> State:
    """Return a state with twice the jobs."""
    old = len(state.jobs)
    jobs, routes = _jobs(2 * old, len(state.nodes) - 1)
    jobs[:old], routes[:old] = state.jobs, state.routes
    jobs["next"][-1] = state.g["free_job"][0]
    state.g["free_job"] = old
    return state._replace(jobs=jobs, routes=routes)


def _jobs(count: int, n: int) -> tuple[NDArray[np.void], NDArray[np.int32]]:
    jobs = np.zeros(count, records.JOB)
    jobs["next"] = np.arange(1, count + 1)
    jobs["next"][-1] = NONE
    return jobs, np.zeros((count, n + 1), np.int32)


def _leaves(places: int) -> NDArray[np.int32]:
    """A tournament in which every place's event is at the same time."""
    winner = np.zeros(2 * places, np.int32)
    winner[places:] = np.arange(places)
    for i in range(places - 1, 0, -1):
        winner[i] = winner[2 * i]
    return winner


def _edges_and_queues(
    setting: Setting,
) -> tuple[NDArray[np.void], NDArray[np.int64], NDArray[np.void], NDArray[np.int64]]:
    machines, placement = setting.machines, setting.placement
    n = len(machines.names)
    matrix = compatible(machines, placement, partial_inference=setting.partial_inference)
    origin, to = np.nonzero(matrix)
    end = np.append(placement.first + placement.count, 0)
    entry = np.where(origin == n, 0, end[origin])
    edges = np.zeros(len(origin), records.EDGE)
    edges["origin"], edges["to"] = origin, to
    edges["layers"] = np.where(to == n, 0, end[to] - entry)
    edges["latency_s"] = machines.latency_s[origin, to]
    edges_at = np.searchsorted(origin, np.arange(n + 2)).astype(np.int64)
    first_queue: list[int] = [0]
    lengths: list[int] = []
    for node in range(n):
        starts = np.unique(np.append(entry[to == node], placement.first[node]))
        for edge in np.flatnonzero(to == node):
            edges["queue"][edge] = first_queue[-1] + np.searchsorted(starts, entry[edge])
        lengths.extend(np.diff(np.append(starts, end[node])))
        first_queue.append(len(lengths))
    lengths.append(0)
    first_queue.append(len(lengths))
    queues = np.zeros(len(lengths), records.QUEUE)
    queues["layers"] = lengths
    for field in ("prompt_head", "prompt_tail", "decode_head", "decode_tail"):
        queues[field] = NONE
    return edges, edges_at, queues, np.array(first_queue)


def _layer_times(kinds: tuple[LayerProfile, ...], phase: str, most: int) -> Floats:
    """Time of one layer by whole sizes up to ``most``, shape (kinds, most + 1). A decode step of
    fewer requests than the smallest size measured takes as long as that one."""
    sizes = np.arange(most + 1, dtype=np.float64)
    rows = np.empty((len(kinds), most + 1))
    for row, kind in zip(rows, kinds, strict=True):
        known = kind.prompt_tokens if phase == "prompt" else kind.decode_requests
        times = kind.prompt_layer_s if phase == "prompt" else kind.decode_layer_s
        row[:] = np.interp(sizes, known, times)
        beyond = sizes > known[-1]
        if beyond.any():
            slope = (times[-1] - times[-2]) / (known[-1] - known[-2])
            row[beyond] = times[-1] + slope * (sizes[beyond] - known[-1])
        if phase == "decode":
            least = known[known > 0].min()
            row[(sizes > 0) & (sizes < least)] = times[known == least][0]
        row[0] = 0.0
    return rows


def _longest_prompt(state: State, use: Flags) -> int:
    """Most tokens of a prompt that some pipeline takes: the widest path by the nodes' caps."""
    n = len(use) - 1
    width = np.zeros(n + 1, np.int64)
    caps = state.nodes["prompt_tokens"][:n].astype(np.int64)
    width[:n] = np.where(use[n, :n], caps, 0)
    for _ in range(n):
        through = np.where(use[:n, :n], width[:n, None], 0).max(axis=0, initial=0)
        wider = np.maximum(width[:n], np.minimum(caps, through))
        if np.array_equal(wider, width[:n]):
            break
        width[:n] = wider
    return int(np.where(use[:n, n], width[:n], 0).max(initial=0))
