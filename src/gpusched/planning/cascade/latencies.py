"""Latency of each model of a cascade by the GPUs it has and the share of requests it gets."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.plan import PlannedPool
from gpusched.domain.spec import Spec
from gpusched.planning.candidates import Engine, fitting_engines, skeleton
from gpusched.sim.deploy import fleet_for
from gpusched.sim.simulate import simulate
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
SHARES = 12
"""Shares simulated; others count as the next larger one."""
GROWTH = 1.3
"""Step between numbers of replicas simulated; others count as the next smaller one."""


@dataclass(frozen=True)
class Option:
    """A pool that serves a model, and the latency it has."""

    pool: PlannedPool
    latency_s: float


class Latencies:
    """Simulated latencies, each simulated once.

    Requests are thinned nestedly, by one random order for all shares and models, so that a smaller
    share is a part of a larger one (common random numbers).
    """

    def __init__(
        self,
        spec: Spec,
        trace: Trace,
        measure: Callable[[Floats], float],
        *,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        assert spec.cascade is not None
        self.trace = replace(trace, think_s=None)
        self.measure = measure
        self.seed = seed
        self.progress = progress
        self.gpus = min(spec.cluster.total_gpus, spec.search.max_gpus or 1 << 30)
        self.simulated = 0
        self._rank = np.random.default_rng([seed, 3]).permutation(len(trace)) / len(trace)
        self.models = [
            spec.model_copy(
                update={"model": part.model, "weights_dtype": part.weights_dtype, "cascade": None}
            )
            for part in spec.cascade.before
        ] + [spec.model_copy(update={"cascade": None})]
        self.engines: list[list[Engine]] = []
        self.refusals: list[str] = []
        for one in self.models:
            fitting, refusals = fitting_engines(one, self.trace)
            self.engines.append(_one_budget(fitting))
            self.refusals.append("; ".join(dict.fromkeys(r.reason for r in refusals[:3])))
        self._tables: dict[tuple[int, int], list[Option | None]] = {}

    def share_step(self, share: float) -> int:
        """Return the number of the simulated share that stands for ``share``; 0 for none at all."""
        return 0 if share <= 0 else max(1, int(np.ceil(share * SHARES - 1e-9)))

    def table(self, model: int, share: float) -> list[Option | None]:
        """Return the best option with up to 0, 1, 2, ... GPUs; None where nothing fits."""
        key = (model, self.share_step(share))
        if key not in self._tables:
            self._tables[key] = self._simulate(*key)
        return self._tables[key]

    def latency_table(self, model: int, share: float) -> Floats:
        """Return the latencies of ``table``, infinite where nothing fits, 0 where nobody comes."""
        if share <= 0:
            return np.zeros(self.gpus + 1)
        return np.array(
            [np.inf if option is None else option.latency_s for option in self.table(model, share)]
        )

    def _simulate(self, model: int, step: int) -> list[Option | None]:
        spec = self.models[model]
        rows = np.flatnonzero(self._rank < step / SHARES)
        part = self.trace.take(rows)
        best: list[Option | None] = [None] * (self.gpus + 1)
        for engine in self.engines[model]:
            size, settled = engine.gpus, False
            limit = min(engine.max_replicas, self.gpus // size)
            for replicas in _steps(limit):
                if settled:
                    break
                pool = engine.pool.model_copy(
                    update={"name": "mixed", "role": "mixed", "replicas": replicas}
                )
                result = simulate(fleet_for(skeleton(spec, (pool,))), part, seed=self.seed)
                self.simulated += 1
                latency = self.measure(np.where(result.rejected, np.inf, result.e2e_s))
                at = replicas * size
                held = best[at]
                if held is None or latency < held.latency_s:
                    best[at] = Option(pool, latency)
                settled = replicas >= len(part)
            if self.progress is not None:
                self.progress(f"{self.simulated} simulations for tables of latency")
        for f in range(1, self.gpus + 1):
            less, here = best[f - 1], best[f]
            if less is not None and (here is None or less.latency_s <= here.latency_s):
                best[f] = less
        return best


def _steps(limit: int) -> list[int]:
    counts, count = [], 1.0
    while count <= limit:
        counts.append(int(count))
        count = max(count + 1, count * GROWTH)
    return sorted({*counts, limit}) if limit else []


def _one_budget(engines: list[Engine]) -> list[Engine]:
    """Keep one token budget of each layout, the largest."""
    kept: dict[tuple[str, str, bool], Engine] = {}
    for engine in engines:
        pool = engine.pool
        key = (pool.nodes, pool.parallelism.layout, pool.enable_expert_parallel)
        before = kept.get(key)
        budget = pool.engine.max_num_batched_tokens or 0
        if before is None or budget > (before.pool.engine.max_num_batched_tokens or 0):
            kept[key] = engine
    return list(kept.values())
