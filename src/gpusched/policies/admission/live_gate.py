"""The gate of Gate-and-Route over live requests: counters of classes, and the plan they are held to.

The simulator's gate plans once, for the mean rates and lengths of a whole trace. Here the plan
follows estimates of what arrives; until there is one, classes start first come first served.
"""

import math
from collections.abc import Sequence

import numpy as np

from gpusched.compilation import compiled_for
from gpusched.policies.admission import gate as gates
from gpusched.policies.admission.fluid import FluidPlan
from gpusched.policies.admission.live_kernels import add_credits, next_class, until_credit_s
from gpusched.policies.admission.service import RequestClass

PRIOR_S = 60.0
"""Time over which arrivals are averaged."""
LEAST_ARRIVALS = 20
"""Seen before rates are given."""


class LiveGate:
    """Says which class starts next when a replica's prefill slot is idle.

    ``waiting`` and ``in_prefill`` count requests a class and are kept by ``arrives``, ``starts``,
    ``prefilled`` and ``leaves``; ``head_arrival_s`` is the arrival of a class's first waiting
    request, kept by the caller.
    """

    def __init__(self, gate: int, classes: int, burst: float = 2.0) -> None:
        self.gate = gate
        self.burst = burst
        self.waiting = np.zeros(classes, np.int64)
        self.in_prefill = np.zeros(classes, np.int64)
        self.head_arrival_s = np.zeros(classes)
        self.targets = np.zeros(classes)
        self.queue_targets = np.zeros(classes)
        self.metered = np.zeros(classes, np.bool_)
        self.credits = np.zeros(classes)
        self.rates_rps = np.zeros(classes)
        self.priorities = np.zeros(classes)
        self.planned = False
        self._next = compiled_for(
            next_class, gate, self.waiting, self.head_arrival_s, self.in_prefill, self.targets,
            self.queue_targets, self.metered, self.credits, self.priorities,
        )  # fmt: skip
        self._add = compiled_for(add_credits, self.credits, self.rates_rps, burst, 0.0)
        self._wait = compiled_for(
            until_credit_s, gate, self.waiting, self.metered, self.credits, self.rates_rps
        )
        self._accrued_s = math.nan

    def follow(self, plan: FluidPlan, replicas: int, classes: Sequence[int]) -> None:
        """Hold to a plan made for one replica, of the ``classes`` that arrive; others have no
        target."""
        at = np.asarray(classes, np.int64)
        for array, values in (
            (self.targets, replicas * plan.prefills),
            (self.queue_targets, replicas * plan.prefill_queue),
            (self.rates_rps, replicas * plan.prefill_rps),
            (self.priorities, [c.output_tokens / c.prompt_tokens for c in plan.classes]),
        ):
            array[:] = 0.0
            array[at] = values
        self.metered[:] = False
        self.metered[at] = plan.metered
        self.planned = True

    def next(self, now_s: float, *, idle: bool) -> int:
        """Return the class whose first request takes an idle slot, and take its credit; -1 if none
        may. A fleet without any work (``idle``) lets the first one in, whatever the plan says."""
        self._accrue(now_s)
        chosen = self._ask(self.gate if self.planned else gates.FIRST_COME)
        if chosen < 0 and idle:
            return self._ask(gates.FIRST_COME)
        if chosen >= 0 and self.gate == gates.CREDIT and self.metered[chosen]:
            self.credits[chosen] -= 1.0
        return chosen

    def next_s(self, now_s: float) -> float:
        """Return when a class that waits for a credit has one; infinite if none does."""
        return now_s + float(
            self._wait(self.gate, self.waiting, self.metered, self.credits, self.rates_rps)
        )

    def _ask(self, gate: int) -> int:
        return int(
            self._next(
                gate, self.waiting, self.head_arrival_s, self.in_prefill, self.targets,
                self.queue_targets, self.metered, self.credits, self.priorities,
            )
        )  # fmt: skip

    def _accrue(self, now_s: float) -> None:
        if self._accrued_s == self._accrued_s and now_s > self._accrued_s:
            self._add(self.credits, self.rates_rps, self.burst, now_s - self._accrued_s)
        if not now_s <= self._accrued_s:
            self._accrued_s = now_s


class ClassRates:
    """Rates and mean lengths of the classes of arriving requests, older ones counting less."""

    def __init__(self, names: Sequence[str], window_s: float = PRIOR_S) -> None:
        self.names = tuple(names)
        self.window_s = window_s
        count = len(self.names)
        self._arrivals = np.zeros(count)
        self._prompts = np.zeros(count)
        self._outputs = np.zeros(count)
        self._seen = 0
        self._first_s = self._last_s = math.nan

    def observe(self, slo_class: int, prompt_tokens: int, output_tokens: int, now_s: float) -> None:
        """Count a request that has arrived; its output is a prediction."""
        if self._seen == 0:
            self._first_s = self._last_s = now_s
        self._forget(now_s)
        self._seen += 1
        self._arrivals[slo_class] += 1.0
        self._prompts[slo_class] += prompt_tokens
        self._outputs[slo_class] += output_tokens

    def classes(self, now_s: float, replicas: int) -> tuple[list[int], list[RequestClass]]:
        """Return the classes that arrive, as numbers and with their rates for each of ``replicas``;
        none while too little has been seen."""
        if self._seen < LEAST_ARRIVALS:
            return [], []
        self._forget(now_s)
        # What a weight of exp(-age / window) adds up to over the time watched.
        elapsed_s = max(now_s - self._first_s, 1e-3)
        watched_s = self.window_s * -math.expm1(-elapsed_s / self.window_s)
        found = [i for i in range(len(self.names)) if self._arrivals[i] > 1e-3]
        return found, [
            RequestClass(
                self.names[i],
                float(self._arrivals[i]) / watched_s / replicas,
                max(float(self._prompts[i] / self._arrivals[i]), 1.0),
                max(float(self._outputs[i] / self._arrivals[i]), 1.0),
            )
            for i in found
        ]

    def _forget(self, now_s: float) -> None:
        if now_s > self._last_s:
            factor = math.exp((self._last_s - now_s) / self.window_s)
            for totals in (self._arrivals, self._prompts, self._outputs):
                totals *= factor
            self._last_s = now_s
