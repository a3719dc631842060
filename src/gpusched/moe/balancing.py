"""Ways to even out expert load, side by side on a trace of expert choices.

Every step's placement is set before its routers have run; tokens then follow the true routing. What
was planned for a rank without the replica goes to the expert's home.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.moe.eplb import rebalance
from gpusched.moe.expert_layer import ExpertLayer, LayerTime, Mask, home_split
from gpusched.moe.predictors import Predictor
from gpusched.moe.replicas import WIDE, PlannerSettings, ReplicaPlanner

Floats = NDArray[np.float64]


class Step(NamedTuple):
    """What a balancer has decided for a step."""

    hosted: Mask
    share: Floats
    """How each expert's pool is split over its hosts, shape (experts, ranks)."""
    hidden: bool
    """Whether replicas moved just before and have to hide in the last layer's window."""


class Balancer:
    """Static placement: every expert on its home alone."""

    resplit = False

    def __init__(self, layer: ExpertLayer) -> None:
        self.layer = layer

    def step(self, actual: Floats, window_s: Floats) -> Step:
        """Decide for a step whose counts, not to be looked at, are ``actual``."""
        hosted = self.layer.natives()
        return Step(hosted, hosted.astype(np.float64), False)

    def observe(self, actual: Floats) -> None:
        """Learn a step's counts once it has run."""


class Eplb(Balancer):
    """DeepSeek's EPLB: every ``interval`` steps copies for the mean load of the last ``window`` steps
    are chosen and packed; they serve ``delay`` steps later. Pools are split evenly over copies."""

    def __init__(
        self,
        layer: ExpertLayer,
        *,
        redundant: int = 2,
        window: int = 100,
        interval: int = 100,
        delay: int = 2,
    ) -> None:
        super().__init__(layer)
        self.redundant, self.window, self.interval, self.delay = redundant, window, interval, delay
        self._loads: list[Floats] = []
        self._steps = 0
        self._current = layer.natives()
        self._coming: tuple[int, Mask] | None = None

    def step(self, actual: Floats, window_s: Floats) -> Step:
        """Serve with the latest placement that has arrived."""
        if self._coming is not None and self._steps >= self._coming[0]:
            self._current, self._coming = self._coming[1], None
        return Step(self._current, self._current.astype(np.float64), False)

    def observe(self, actual: Floats) -> None:
        """Keep the loads, and choose copies anew where it is time."""
        self._loads = [*self._loads[1 - self.window :], actual.sum(axis=1)]
        self._steps += 1
        if self._steps % self.interval:
            return
        experts, ranks = self.layer.experts, self.layer.ranks
        slots = experts + self.redundant * ranks
        load = np.mean(self._loads, axis=0) + 1e-9
        held = rebalance(load[None, :], slots, 1, 1, ranks).expert_of[0]
        hosted = np.zeros((experts, ranks), np.uint8)
        hosted[held, np.arange(slots) // (slots // ranks)] = 1
        self._coming = (self._steps + self.delay, hosted)


class Probe(Balancer):
    """Replicas chosen anew for every step from predicted counts, within the hiding window.

    ``resplit`` splits tokens by the true counts once routing is known, over the replicas that were
    planned from the prediction; otherwise the planned shares hold.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        predictor: Predictor,
        settings: PlannerSettings = WIDE,
        *,
        resplit: bool = False,
    ) -> None:
        super().__init__(layer)
        self.predictor, self.resplit = predictor, resplit
        self.planner = ReplicaPlanner(layer, settings)

    def step(self, actual: Floats, window_s: Floats) -> Step:
        """Plan for the predicted counts."""
        predicted = self.predictor.predict(actual)
        if predicted is None:
            return super().step(actual, window_s)
        plan = self.planner.plan(predicted, self.layer.budget(window_s))
        hosted, share = plan.hosted.copy(), plan.remote.copy()
        return Step(hosted, share, True)

    def observe(self, actual: Floats) -> None:
        """Tell the predictor."""
        self.predictor.observe(actual)


@dataclass(frozen=True, slots=True)
class Balanced:
    """How a balancer did; arrays of shape (steps,)."""

    name: str
    imbalance: Floats
    """Tokens of the busiest rank over the mean."""
    compute_imbalance: Floats
    """Compute of the slowest rank over the mean."""
    layer_s: Floats
    exposed_s: Floats
    replicas: Floats

    @property
    def mean_imbalance(self) -> float:
        """Mean ratio, as timing models take it (``TimingModel.at_imbalance``)."""
        return float(self.imbalance.mean())


def balance(
    layer: ExpertLayer,
    trace: NDArray[np.float64],
    balancers: dict[str, Balancer],
    *,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Balanced]:
    """Run balancers over a trace of shape (steps, experts, ranks) of one layer.

    Raises:
        InputError: a trace of another shape, or with counts that are no counts.
    """
    if trace.ndim != 3 or not len(trace):
        raise InputError(f"trace: must have shape (steps, experts, ranks), got {trace.shape}")
    results = []
    for name, balancer in balancers.items():
        times, replicas = [], []
        window = layer.window_s(np.zeros(layer.ranks))
        for counts in trace:
            actual = layer.check_tokens(counts)
            decided = balancer.step(actual, window)
            split = home_split(actual, decided.hosted, decided.share)
            if balancer.resplit and isinstance(balancer, Probe):
                split = balancer.planner.split(actual, decided.hosted).copy()
            time = layer.time(actual, decided.hosted, split, window if decided.hidden else None)
            balancer.observe(actual)
            window = layer.window_s(time.compute_s)
            times.append(time)
            replicas.append(int(decided.hosted.sum()) - layer.experts)
        progress(name)
        results.append(_summary(name, times, replicas))
    return results


def _summary(name: str, times: Sequence[LayerTime], replicas: Sequence[int]) -> Balanced:
    return Balanced(
        name,
        np.array([time.imbalance_ratio for time in times]),
        np.array([time.compute_s.max() / time.compute_s.mean() for time in times]),
        np.array([time.layer_s for time in times]),
        np.array([time.exposed_s for time in times]),
        np.array(replicas, np.float64),
    )
