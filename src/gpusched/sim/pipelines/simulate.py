"""Simulating requests that each go through a pipeline of unequal nodes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.policies.routing.iwrr import IWRR
from gpusched.policies.routing.pipelines import PipelineRouting, pipeline_routing
from gpusched.sim.gaps import GapHistogram
from gpusched.sim.pipelines.build import OfflineFeed, Setting, build, connect, more_jobs
from gpusched.sim.pipelines.kernel import run
from gpusched.sim.pipelines.limits import BatchLimits, measured_limits
from gpusched.sim.pipelines.outages import stop_node
from gpusched.sim.pipelines.result import NodeUse, PipelineResult
from gpusched.sim.pipelines.state import DONE, NEEDS_JOBS, State
from gpusched.timing.machines import Machines, Placement
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A node that fails, or joins, at some time."""

    time_s: float
    node: int
    up: bool = False
    """Whether it joins. A node whose first change is to join is down before that."""


def simulate_pipelines(
    machines: Machines,
    placement: Placement,
    flows: Floats,
    trace: Trace,
    *,
    routing: str | PipelineRouting = "iwrr",
    partial_inference: bool = False,
    offline: OfflineFeed | bool = False,
    warmup_s: float = 0.0,
    duration_s: float | None = None,
    seed: int = 0,
    limits: BatchLimits | None = None,
    mean_output_tokens: float | None = None,
    copy_bytes_per_s: float = math.inf,
    changes: Sequence[NodeChange] = (),
    solve_flows: Callable[[Flags], Floats] | None = None,
    progress: Callable[[float], None] | None = None,
) -> PipelineResult:
    """Simulate a trace on nodes that each hold some layers.

    Args:
        flows: planned tokens/s between places, shape (n + 1, n + 1), the front last. Policies other
            than IWRR ignore them and use every compatible link.
        routing: ``iwrr``, ``swarm``, ``random`` or ``shortest-queue``.
        partial_inference: whether a node may run only the later part of its layers.
        offline: a closed loop takes the trace's requests in order and ignores their arrival times.
        warmup_s: start of the measured window.
        duration_s: length of the window, after which the simulation ends; None: when all is done.
        limits: caps on batches; those of the profiles' tables if not given.
        mean_output_tokens: what the router's KV estimate goes by; the trace's mean if not given.
        changes: nodes that fail or join. Requests on a failed node start again, the tokens they
            have given as part of the prompt.
        solve_flows: maps the nodes that are up, shape (n,), to new flows, after each change; the
            old flows without the nodes that are down if not given.
        progress: called with the share of requests that have arrived.

    Raises:
        InputError: shapes that do not fit, layers that no node holds, or flows that reach no end.
    """
    if trace.think_s is not None:
        raise InputError(
            f"{trace.name}: has sessions whose later rounds wait for answers, which pipelines do not "
            "simulate; give a trace with arrival times only"
        )
    policy = pipeline_routing(routing) if isinstance(routing, str) else routing
    _check(machines, placement, flows, changes)
    setting = Setting(
        machines, placement, policy, partial_inference, limits or measured_limits(machines),
        float(trace.output_tokens.mean()) if mean_output_tokens is None else mean_output_tokens,
        copy_bytes_per_s, warmup_s, seed,
        (OfflineFeed() if offline is True else offline) or None,
    )  # fmt: skip
    changes = sorted(changes, key=lambda change: change.time_s)
    up = placement.count > 0
    for change in reversed(changes):
        up[change.node] = not change.up
    state = build(setting, trace)
    connect(state, setting, up, flows)
    if not state.usable.any():
        raise InputError(
            "no pipeline from the front through all layers and back: "
            + ("the flows reach no end" if policy.kind == IWRR else "the placement has gaps")
        )
    end_s = math.inf if duration_s is None else float(warmup_s + duration_s)
    run(state, -1.0)  # compiles
    state.g["now_s"] = 0.0
    started, processor = time.perf_counter(), time.process_time()
    for change in changes:
        if change.time_s >= end_s:
            break
        state = _advance(state, float(change.time_s), progress)
        up = up.copy()
        up[change.node] = change.up
        if not change.up:
            stop_node(state, change.node, change.time_s)
        new = solve_flows(up) if solve_flows is not None else flows
        connect(state, setting, up, new)
    state = _advance(state, end_s, progress)
    seconds = (time.perf_counter() - started, time.process_time() - processor)
    return _result(state, setting, end_s, *seconds)


def _advance(state: State, until_s: float, progress: Callable[[float], None] | None) -> State:
    """Simulate up to a time, telling the progress a hundred times or so."""
    step_s = math.inf
    if progress is not None:
        last_s = float(np.nanmax(state.requests["arrival_s"], initial=0.0))
        step_s = max(last_s if until_s == math.inf else until_s, 1.0) / 100
    while True:
        target_s = min(float(state.g["now_s"][0]) + step_s, until_s)
        ended = run(state, target_s)
        if ended == NEEDS_JOBS:
            state = more_jobs(state)
        elif ended == DONE or target_s >= until_s:
            if until_s < math.inf:
                state.g["now_s"] = until_s
            return state
        if progress is not None:
            progress(float(state.g["arrived"][0]) / max(len(state.requests), 1))


def _check(
    machines: Machines, placement: Placement, flows: Floats, changes: Sequence[NodeChange]
) -> None:
    n = len(machines.names)
    for name, shape, expected in (
        ("placement", placement.first.shape, (n,)),
        ("placement", placement.count.shape, (n,)),
        ("flows", flows.shape, (n + 1, n + 1)),
        ("bandwidth_bytes_per_s", machines.bandwidth_bytes_per_s.shape, (n + 1, n + 1)),
        ("latency_s", machines.latency_s.shape, (n + 1, n + 1)),
    ):
        if shape != expected:
            raise InputError(f"{name}: shape {shape}, but {n} nodes need {expected}")
    for node in range(n):
        first, count = int(placement.first[node]), int(placement.count[node])
        most = machines.kinds[machines.kind_of[node]].most_layers
        if count > most:
            raise InputError(f"{machines.names[node]}: holds {count} layers, may hold {most}")
        if count and not 0 <= first <= machines.layers - count:
            raise InputError(
                f"{machines.names[node]}: layers {first} to {first + count - 1}, "
                f"but the model's are 0 to {machines.layers - 1}"
            )
    for change in changes:
        if not 0 <= change.node < n:
            raise InputError(f"changes: no node {change.node}; there are {n}")


def _result(
    state: State, setting: Setting, end_s: float, wall_s: float, processor_s: float
) -> PipelineResult:
    g = state.g[0]
    n = len(setting.machines.names)
    end_s = float(g["now_s"]) if end_s == math.inf else end_s
    nodes = state.nodes[:n]
    capacity = np.maximum(nodes["kv_capacity"], 1.0)
    span_s = max(end_s, 1e-12)
    ahead_s = np.where(np.isfinite(nodes["finish_s"]), nodes["finish_s"] - end_s, 0.0)
    use = NodeUse(
        setting.machines.names,
        nodes["iterations"].copy(),
        nodes["layer_iterations"].copy(),
        nodes["batched"] / np.maximum(nodes["iterations"], 1),
        np.maximum(nodes["busy_s"] - ahead_s, 0.0) / span_s,
        nodes["prompt_busy_s"] / span_s,
        nodes["wait_s"] / np.maximum(nodes["waits"], 1),
        nodes["kv_peak"] / capacity,
        nodes["kv_reserved_peak"] / capacity,
    )
    requests = state.requests[: int(g["arrived"])]
    bins = min(math.ceil(end_s / float(g["bin_s"])), state.busy.shape[1])
    series_s = np.arange(bins + 1) * float(g["bin_s"])
    return PipelineResult(
        **{
            name: requests[field].copy()
            for name, field in (
                ("arrival_s", "arrival_s"),
                ("dispatched_s", "dispatched_s"),
                ("first_token_s", "first_s"),
                ("finish_s", "finish_s"),
                ("prompt_tokens", "prompt_tokens"),
                ("output_tokens", "output_tokens"),
                ("produced_tokens", "produced"),
                ("restarts", "restarts"),
            )
        },
        hops=np.maximum(requests["hops"] - 1, 0),
        rejected=requests["rejected"] > 0,
        decode_latency=GapHistogram(
            state.gap_counts, float(state.gap_totals["total_s"][0]),
            float(state.gap_totals["max_s"][0]),
        ),
        decode_tokens=int(g["decode_tokens"]),
        computed_prompt_tokens=int(g["prompt_tokens"]),
        warmup_s=setting.warmup_s,
        end_s=end_s,
        nodes=use,
        series_s=series_s,
        busy=state.busy[:, :bins] / float(g["bin_s"]),
        kv_use=state.kv[:, :bins] / capacity[:, None],
        token_rate=state.tokens[:bins] / float(g["bin_s"]),
        wall_s=wall_s,
        processor_s=processor_s,
    )  # fmt: skip
