"""The state of admission at the start of a run: an empty front, and the plan of its gate."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.policies.admission.fluid import FluidPlan, fluid_plan
from gpusched.policies.admission.policy import GATED, STAGGERED, AdmissionPolicy
from gpusched.policies.admission.service import Prices, RequestClass, ServerModel
from gpusched.sim import state
from gpusched.sim.fleet import Fleet, Pool
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace

WINDOW = 512
"""Held requests that one release looks at."""


class Front(NamedTuple):
    """Where requests are held."""

    record: NDArray[np.void]
    window: state.Window
    classes: state.Classes
    note: str
    """What a gate's plan leaves out."""


def front_of(fleet: Fleet, trace: Trace, lanes: list[Pool], entry_engines: int) -> Front:
    """Return an empty front.

    A gate's plan is that of the trace's mean rates and lengths by class.

    Raises:
        InputError: the plan needs another fleet.
    """
    *_, policy = fleet.policies
    front = np.zeros(1, state.FRONT)
    front["head"] = front["tail"] = state.NONE
    front["tick_s"] = math.inf
    front["last_release_s"] = -math.inf
    front["lowest_s"] = policy.lowest_interval_s
    front["network_s"] = policy.network_s
    front["age_limit"] = policy.age_limit
    front["gate"] = policy.gate
    front["burst"] = policy.burst
    if policy.kind == STAGGERED:
        front["prior_s"] = full_pass_s(lanes[0].timing, lanes[0].max_num_batched_tokens)
    places = WINDOW if policy.kind == STAGGERED else 1
    columns = entry_engines if policy.kind == STAGGERED else 1
    window = state.Window(
        requests=np.zeros(places, np.int64),
        order=np.zeros(places, np.int64),
        lengths=np.zeros(places, np.int64),
        ages=np.zeros(places, np.int64),
        assigned=np.zeros(places, np.int64),
        hits=np.zeros((places, columns), np.int64),
        room=np.zeros(columns, np.int64),
        passes_s=np.zeros((1, policy.window_passes)),
        reported_s=np.zeros(columns),
    )
    classes, note = classes_of(policy, trace, lanes)
    return Front(front, window, classes, note)


def full_pass_s(timing: CompiledTiming, tokens: int) -> float:
    """Return the time of a pass over one prompt that fills the budget."""
    last = len(timing.tokens_s) - 1
    pairs = tokens * (tokens + 1) / 2
    return float(
        timing.tokens_s[min(tokens, last)]
        + timing.logits_s[1]
        + timing.prefill_fixed_s
        + timing.work_s * pairs
    )


def classes_of(
    policy: AdmissionPolicy, trace: Trace, lanes: list[Pool]
) -> tuple[state.Classes, str]:
    """Return the gate's classes and what its plan sheds."""
    count = 1 if trace.class_id is None else int(trace.class_id.max()) + 1
    targets = np.zeros(count)
    queue_targets = np.zeros(count)
    metered = np.zeros(count, np.bool_)
    rates_rps = np.zeros(count)
    priorities = np.zeros(count)
    note = ""
    if policy.kind == GATED:
        plan = gate_plan(policy, trace, lanes, count)
        n = len(lanes)
        targets, queue_targets = n * plan.prefills, n * plan.prefill_queue
        metered, rates_rps = plan.metered, n * plan.prefill_rps
        priorities = np.array([c.output_tokens / c.prompt_tokens for c in plan.classes])
        shed = [
            f"{share:.0%} of class {c.name}"
            for c, share in zip(plan.classes, plan.shed_share, strict=True)
            if share > 1e-6
        ]
        if shed:
            note = (
                f"{policy.name}: the load is beyond what {n} replicas can serve; the plan leaves out "
                + " and ".join(shed)
            )
    return (
        state.Classes(
            heads=np.full(count, state.NONE, np.int64),
            tails=np.full(count, state.NONE, np.int64),
            waiting=np.zeros(count, np.int64),
            arrival_s=np.zeros(count),
            targets=targets.astype(np.float64),
            queue_targets=queue_targets.astype(np.float64),
            metered=metered.astype(np.bool_),
            credits=np.zeros(count),
            rates_rps=rates_rps.astype(np.float64),
            priorities=priorities,
        ),
        note,
    )


def gate_plan(policy: AdmissionPolicy, trace: Trace, lanes: list[Pool], count: int) -> FluidPlan:
    """Return the fluid plan for a trace's classes on equal engines.

    Raises:
        InputError: engines differ in timing or budget.
    """
    pool = lanes[0]
    if any(other.timing is not pool.timing for other in lanes):
        raise InputError(
            f"admission {policy.name} plans for replicas of one kind; this fleet has several"
        )
    span_s = max(trace.duration_s, 1e-9)
    class_id = np.zeros(len(trace), np.int64) if trace.class_id is None else trace.class_id
    classes = []
    for i in range(count):
        own = class_id == i
        name = trace.class_names[i] if i < len(trace.class_names) else str(i)
        classes.append(
            RequestClass(
                name,
                float(own.sum()) / span_s / len(lanes),
                float(trace.prompt_tokens[own].mean()) if own.any() else 1.0,
                float(trace.output_tokens[own].mean()) if own.any() else 1.0,
            )
        )
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    kv_tokens = max(pool.kv_blocks // pool.pipeline_stages * pool.block_tokens, longest)
    server = ServerModel.of_timing(
        pool.timing,
        classes,
        float(kv_tokens),
        chunk_tokens=pool.max_num_batched_tokens,
        max_num_seqs=max(pool.max_num_seqs // pool.pipeline_stages, 1),
    )
    return fluid_plan(classes, server, Prices(policy.prompt_price, policy.output_price))
