"""What one instance serves: the largest rate at which requests meet their objectives, simulated."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.slo import SloClasses
from gpusched.errors import InfeasibleError
from gpusched.sim.fleet import Fleet
from gpusched.sim.result import SimulationResult
from gpusched.sim.simulate import simulate
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
STEPS = 7
"""Halvings of the rate's interval: 1 % of it is left."""


@dataclass(frozen=True)
class Service:
    """Capacity by size of the fleet: many instances share one queue's luck."""

    instances: NDArray[np.int64]
    """Fleet sizes tried, ascending."""
    tokens_per_s: Floats
    """Prompt tokens a second of all of them."""

    def each(self, number: float) -> float:
        """Return what one of ``number`` instances serves, tokens a second."""
        per = self.tokens_per_s / self.instances
        return float(np.interp(np.log(max(number, 1.0)), np.log(self.instances), per))

    def needed(self, tokens_per_s: float, most: int = 10_000) -> int:
        """Return the fewest instances that serve a demand."""
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if middle * self.each(middle) >= tokens_per_s else (middle, high)
            )
        return high


def attainment(result: SimulationResult, slo: SloClasses, arrival_s: Floats) -> dict[str, float]:
    """Return the share of requests of each class that meet its objectives; 1 for empty classes."""
    met = {}
    classes = result.class_id if result.class_id is not None else np.zeros(len(arrival_s), np.int16)
    ttft_s, e2e_s = result.first_token_s - arrival_s, result.finish_s - arrival_s
    for number, (name, objective) in enumerate(slo.classes.items()):
        own = classes == number
        ok = objective.met(ttft_s[own], result.tpot_s[own], e2e_s[own])
        met[name] = float(ok.mean()) if own.any() else 1.0
    return met


def measure_service(
    fleet: Fleet,
    sample: Trace,
    slo: SloClasses,
    *,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16),
    requests: int = 3000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Service:
    """Return the largest Poisson rate at which every class meets its objectives, by bisection.

    Lengths and classes are those of ``sample``, drawn anew; deferrable classes count like the others
    by the objective they have.

    Raises:
        InfeasibleError: even a request by itself misses its objective too often.
    """
    rng = np.random.default_rng([seed, 3])
    found: list[float] = []
    for size in sizes:
        pool = replace(fleet.pools[0], replicas=size, startup_s=0.0)
        own = replace(fleet, pools=(pool,))
        drawn = sample.take(rng.integers(0, len(sample), requests * max(size // 2, 1)))
        gaps = rng.exponential(1.0, len(drawn))
        unit = replace(drawn, arrival_s=np.cumsum(gaps))

        def meets(rate_rps: float, unit: Trace = unit, own: Fleet = own) -> bool:
            result = simulate(own, unit.scale_rate(rate_rps), seed=seed)
            met = attainment(result, slo, result.arrival_s)
            return all(met[name] >= objective.attainment for name, objective in slo.classes.items())

        low = found[-1] * size / sizes[len(found) - 1] * 0.8 if found else 0.01
        if not meets(low):
            if not found:
                worst = simulate(own, unit.scale_rate(low), seed=seed)
                names = attainment(worst, slo, worst.arrival_s)
                text = ", ".join(f"{name} {share:.1%}" for name, share in names.items())
                raise InfeasibleError(
                    f"one instance alone, nearly idle, reaches {text}; give an instance more GPUs or "
                    "longer objectives"
                )
            low *= 0.7
        high = low * 2
        while meets(high):
            low, high = high, high * 2
        for _ in range(STEPS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if meets(middle) else (low, middle)
        found.append(low)
        if progress is not None:
            progress(f"{size} instances serve {low:.3g} requests a second")
    mean = float(sample.prompt_tokens.mean())
    return Service(np.array(sizes), np.array(found) * mean)
