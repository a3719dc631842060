"""A schedule in unit rounds, and the check that it keeps to arrivals and budget."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpusched.policies.batching.rounds import Ints, checked


@dataclass(frozen=True, slots=True)
class HindsightSchedule:
    """A schedule and what is known of its quality."""

    starts: Ints
    completions: Ints
    total_latency: int
    """Sum of completion less arrival, rounds."""
    bound: float
    """No schedule has less."""
    method: str
    seconds: float

    @property
    def gap(self) -> float:
        """(total - bound) / total."""
        return max(self.total_latency - self.bound, 0.0) / self.total_latency

    @property
    def proven(self) -> bool:
        """Whether the schedule is known to be optimal: latencies are whole."""
        return self.total_latency < self.bound + 1.0 - 1e-6


def check_schedule(
    arrival: ArrayLike, prompt: ArrayLike, output: ArrayLike, kv_tokens: int, starts: ArrayLike
) -> list[str]:
    """Return what is wrong with a schedule; nothing if it is feasible."""
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    p = np.asarray(starts, np.int64)
    found = [
        f"request {i} starts in round {p[i]}, before it arrives" for i in np.flatnonzero(p < a)
    ]
    for t in range(int(p.min()) + 1, int((p + o).max()) + 1):
        alive = (p < t) & (t <= p + o)
        held = int((s + t - p)[alive].sum())
        if held > kv_tokens:
            found.append(f"round {t}: {held} tokens exceed {kv_tokens}")
    return found
