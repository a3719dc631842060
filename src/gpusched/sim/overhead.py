"""What requests spend outside engines, around a simulation of the engines.

Engines do not know of it: a request comes to them ``entry_s`` after it was sent, and each of its
tokens is received ``exit_s`` after the iteration that made it. So it is enough to simulate later
arrivals and move the times that clients see. A user of a closed loop, and the next round of a session,
wait for both before they go on. Only for users of a closed loop is the time of entry that of the mean
prompt, and an engine's start-up time counts from the entry of the first request.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.fleet import Fleet
from gpusched.sim.result import SimulationResult
from gpusched.timing.measured import NO_OVERHEAD
from gpusched.traces.trace import Trace


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of users, each of whom sends the next request after an answer.

    Arrival times of the trace are ignored; its order is kept. A session counts as one request: its
    user goes on to the next one after the last round.
    """

    users: int
    think_s: float = 0.0


def with_overhead(
    simulate: Callable[..., SimulationResult],
    fleet: Fleet,
    trace: Trace,
    closed_loop: ClosedLoop | None,
) -> SimulationResult:
    """Return what ``simulate`` says of the engines as clients of the fleet see it."""
    overhead = fleet.overhead
    bare = replace(fleet, overhead=NO_OVERHEAD)
    entry_s = overhead.entry_s + overhead.entry_token_s * trace.prompt_tokens.astype(np.float64)
    if closed_loop is not None:
        entry_s = np.full(len(trace), float(entry_s.mean()) if len(trace) else 0.0)
        pause_s = closed_loop.think_s + overhead.exit_s + entry_s[0]
        closed_loop = replace(closed_loop, think_s=float(pause_s))
    arrival_s, think_s = trace.arrival_s + entry_s, trace.think_s
    due_s = arrival_s
    if think_s is not None:
        later = np.asarray(trace.round) > 0
        think_s = think_s + np.where(later, overhead.exit_s + entry_s, 0.0)
        due_s = np.where(later, np.inf, arrival_s)
    order = np.argsort(due_s, kind="stable")
    delayed = replace(trace, arrival_s=arrival_s, think_s=think_s)
    if (np.diff(order) < 0).any():
        result = simulate(bare, delayed.take(order), closed_loop=closed_loop)
        result = in_order(result, np.argsort(order), trace)
    else:
        result = simulate(bare, delayed, closed_loop=closed_loop)
    start_s = entry_s[0] if closed_loop is not None else 0.0
    return replace(
        result,
        arrival_s=result.arrival_s - entry_s + start_s,
        admitted_s=result.admitted_s + start_s,
        first_token_s=result.first_token_s + overhead.exit_s + start_s,
        finish_s=result.finish_s + overhead.exit_s + start_s,
        makespan_s=result.makespan_s + overhead.exit_s + start_s,
    )


def in_order(result: SimulationResult, rows: NDArray[np.int64], trace: Trace) -> SimulationResult:
    """Return a result with its requests in the order of ``rows``."""
    names = (
        "arrival_s", "admitted_s", "first_token_s", "finish_s", "cached_tokens", "preemptions",
        "replica", "rejected",
    )  # fmt: skip
    columns = {name: getattr(result, name)[rows] for name in names}
    log = result.rounds
    if log is not None:
        log = replace(
            log,
            branch=log.branch[rows],
            history_tokens=log.history_tokens[rows],
            evicted=log.evicted[rows],
        )
    return replace(
        result,
        **columns,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        class_id=trace.class_id,
        rounds=log,
    )
