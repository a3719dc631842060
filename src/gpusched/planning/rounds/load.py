"""What rounds of sessions ask of the two phases: first and incremental prefills, and decodes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.timing.iteration import TimingModel
from gpusched.timing.serving import lone_prefill_s
from gpusched.traces.describe import ideal_hits
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
BUSY_SHARE = 0.25
"""Load is that of the shortest time in which so many of the rounds arrive: a trace begins and ends
thinly, before the first sessions are under way and while the last ones end."""


@dataclass(frozen=True)
class RoundLoad:
    """The rounds of a trace, an entry a request in trace order, and how often they come."""

    session: NDArray[np.int64]
    """Dense numbers of sessions."""
    first: NDArray[np.bool_]
    """Whether it is its session's first round."""
    history_tokens: Floats
    """Context whose KV cache exists already when the round arrives."""
    new_tokens: Floats
    """Tokens to prefill: prompt less history."""
    context_tokens: Floats
    """Mean context while the answer is decoded."""
    output_tokens: Floats
    held_s: Floats
    """Time from a round's arrival to the next of its session, or to its own end, on idle workers."""
    rounds_per_s: float
    """Rounds that arrive a second in the busiest part of the trace."""

    @property
    def sessions(self) -> int:
        """Number of sessions."""
        return int(self.session.max()) + 1

    @property
    def first_per_s(self) -> float:
        """First prefills a second."""
        return self.rounds_per_s * float(self.first.mean())

    @property
    def later_per_s(self) -> float:
        """Incremental prefills a second."""
        return self.rounds_per_s * float((~self.first).mean())

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens decoded a second; the first of an answer comes from the prefill."""
        return self.rounds_per_s * float((self.output_tokens - 1).mean())

    @property
    def decode_context_tokens(self) -> float:
        """Mean context of a decoded token."""
        steps = self.output_tokens - 1
        return float((steps * self.context_tokens).sum() / max(steps.sum(), 1.0))

    @property
    def held_tokens(self) -> float:
        """Contexts of all sessions under way, tokens: what decode workers hold if none is evicted."""
        context = self.history_tokens + self.new_tokens + self.output_tokens
        return self.rounds_per_s * float((context * self.held_s).mean())

    def prefill_s(self, timing: TimingModel) -> Floats:
        """Return the time of each round's prefill on an idle worker."""
        return prefill_s(timing, self.history_tokens, self.new_tokens)


def prefill_s(timing: TimingModel, history: Floats, new: Floats) -> Floats:
    """Return the time of prefills of ``new`` tokens on top of a history, each alone."""
    window = np.minimum(history, float(timing.window))
    past_s = new * (timing.work_s * history + timing.window_work_s * window)
    return lone_prefill_s(timing, new) + past_s


def round_load(trace: Trace, timing: TimingModel) -> RoundLoad:
    """Return the rounds of a trace; ``timing`` says about when later rounds arrive.

    Raises:
        InputError: the trace has no sessions, or none with a second round.
    """
    if trace.session_id is None or trace.round is None:
        raise InputError(
            f"workload.rounds: {trace.name} has no sessions; give a trace with the columns "
            "session_id, round and think_s, or a profile with rounds (agent, assistant, rag)"
        )
    if not (trace.round > 0).any():
        raise InputError(
            f"workload.rounds: no session of {trace.name} has a second round; plan it without rounds"
        )
    _, session = np.unique(trace.session_id, return_inverse=True)
    order = np.lexsort((trace.round, session))
    later = np.concatenate(([False], np.diff(session[order]) == 0))
    prompt = trace.prompt_tokens.astype(np.float64)
    output = trace.output_tokens.astype(np.float64)
    history = np.zeros(len(trace))
    if trace.prefix is not None:
        history = np.minimum(ideal_hits(trace).astype(np.float64), prompt - 1.0)
    else:
        before = (prompt + output)[order[:-1]]
        history[order[1:]] = np.where(later[1:], np.minimum(before, prompt[order[1:]] - 1.0), 0.0)
    first = np.zeros(len(trace), np.bool_)
    first[order] = ~later
    served_s = prefill_s(timing, history, prompt - history)
    served_s += (output - 1.0) * timing.decode_s(1, float(prompt.mean()))
    arrival_s = _arrivals_s(trace, order, later, served_s)
    held_s = served_s.copy()
    if trace.think_s is not None:
        held_s[order[:-1]] += np.where(later[1:], trace.think_s[order[1:]], 0.0)
    return RoundLoad(
        session=session,
        first=first,
        history_tokens=history,
        new_tokens=prompt - history,
        context_tokens=prompt + output / 2.0,
        output_tokens=output,
        held_s=held_s,
        rounds_per_s=_busy_rate(arrival_s),
    )


def _busy_rate(arrival_s: Floats) -> float:
    times_s = np.sort(arrival_s)
    count = max(int(BUSY_SHARE * len(times_s)), 1)
    spans_s = times_s[count:] - times_s[:-count]
    return count / max(float(spans_s.min()), 1e-3)


def _arrivals_s(
    trace: Trace, order: NDArray[np.int64], later: NDArray[np.bool_], served_s: Floats
) -> Floats:
    """Return when rounds arrive if none ever waits: starts, answers and think times add up."""
    if trace.think_s is None:
        return trace.arrival_s
    step_s = np.where(later, trace.think_s[order], 0.0)
    step_s[1:] += np.where(later[1:], served_s[order[:-1]], 0.0)
    total_s = np.cumsum(step_s)
    starts = np.flatnonzero(~later)
    of = np.cumsum(~later) - 1
    since_s = total_s - total_s[starts][of]
    arrival_s = np.empty(len(trace))
    arrival_s[order] = trace.arrival_s[order[starts]][of] + since_s
    return arrival_s
