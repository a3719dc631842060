"""Splits worth simulating: the best of all GPUs, or the cheapest for each multiple of the load."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, product
from math import ceil

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.slo import show_s
from gpusched.domain.spec import Spec
from gpusched.errors import InfeasibleError
from gpusched.planning.candidates import Engine
from gpusched.planning.rounds.load import RoundLoad
from gpusched.planning.rounds.problem import SplitProblem
from gpusched.planning.rounds.program import cheapest_program
from gpusched.planning.rounds.queueing import in_time
from gpusched.planning.rounds.split import Split, best_split, best_splits, capacity_of
from gpusched.planning.rounds.workers import Kind, split_problem, tightest_tpot_s
from gpusched.planning.search import Deployment
from gpusched.sim.fleet import Role

HEADROOM = tuple(float(u) for u in np.geomspace(0.6, 8.0, 34))
"""Multiples of the offered load that splits are sized for, 8 % apart. The load is that of the busiest
part of a trace and batches are cautious, so that somewhat less can be enough."""

Counts = tuple[tuple[int, ...], tuple[int, ...]]
"""Workers of each kind that prefill, and that decode."""


@dataclass(frozen=True)
class Proposal:
    """A split with its price and what the formulas expect of it."""

    split: Split
    deployment: Deployment
    price: float
    expected: float
    """Share in time by queueing formulas."""


@dataclass(frozen=True)
class Proposals:
    """Splits of a cluster at given speeds of its workers."""

    spec: Spec
    load: RoundLoad
    kinds: list[Kind]
    prices: NDArray[np.float64]
    """Of one worker of each kind, in the objective's unit."""
    local_share: float

    def problem(self, gpus: int | None = None) -> SplitProblem:
        """Return the program of the cluster, or of so many GPUs."""
        limit = self.spec.search.max_gpus
        return split_problem(self.spec, self.kinds, limit if gpus is None else gpus)

    def _keeping(self, problem: SplitProblem) -> SplitProblem:
        """Return a problem whose decode workers must hold every session under way, think times
        included (A-6): no history is then evicted and computed anew."""
        return replace(problem, held_tokens=self.load.held_tokens)

    def of_all_gpus(self, count: int) -> list[Proposal]:
        """Return up to ``count`` of the best splits of the whole cluster, each pair of single kinds
        represented, in the order of what the formulas expect."""
        problem = self.problem()
        splits = {split.counts: split for split in best_splits(problem, count)}
        with suppress(InfeasibleError):
            keeps = best_split(self._keeping(problem))
            splits.setdefault(keeps.counts, keeps)
        for p, d in self._pairs():
            pre, dec = np.zeros_like(self.prices), np.zeros_like(self.prices)
            pre[p], dec[d] = problem.prefill_speed[p], problem.decode_speed[d]
            try:
                split = best_split(replace(problem, prefill_speed=pre, decode_speed=dec))
            except InfeasibleError:
                continue
            splits.setdefault(split.counts, split)
        ranked = sorted(map(self._propose, splits.values()), key=_most_expected)
        return ranked[:count]

    def cheapest(self) -> list[Proposal]:
        """Return the cheapest mix, with and without room for all histories, and the cheapest pair of
        every two kinds, for each multiple of the load that the cluster can carry.

        Raises:
            InfeasibleError: the cluster cannot carry the load.
        """
        problem = self.problem()
        whole = best_split(problem)
        if whole.capacity < HEADROOM[0]:
            raise InfeasibleError(self._too_small(problem, whole))
        splits: dict[Counts, Split] = {whole.counts: whole}
        for headroom in HEADROOM:
            if headroom > whole.capacity:
                break
            for x, y in chain(
                self._cheapest_mix(problem, headroom),
                self._cheapest_mix(self._keeping(problem), headroom),
                self._cheapest_pairs(problem, headroom),
            ):
                least, most = capacity_of(problem, x, y)
                splits.setdefault((x, y), Split(x, y, least, most, whole.capacity))
        return sorted(map(self._propose, splits.values()), key=_most_expected)

    def neighbours(self, deployment: Deployment) -> list[Proposal]:
        """Return the splits that differ by GPUs of one kind and phase given to another, as few as make
        whole workers, the most expected first."""
        split, problem = self.split_of(deployment), self.problem()
        workers = np.array([*split.prefill, *split.decode])
        size, group = np.tile(problem.size, 2), np.tile(problem.group, 2)
        allowed = np.concatenate((problem.prefill_speed, problem.decode_speed)) > 0
        kinds = len(self.kinds)
        found = []
        for a, b in product(np.flatnonzero(workers), np.flatnonzero(allowed)):
            moved = int(np.lcm(size[a], size[b]))
            if a == b or group[a] != group[b] or workers[a] * size[a] < moved:
                continue
            other = workers.copy()
            other[a] -= moved // size[a]
            other[b] += moved // size[b]
            x, y = other[:kinds], other[kinds:]
            if x.any() and y.any():
                least, most = capacity_of(problem, x, y)
                moved_split = Split(tuple(x.tolist()), tuple(y.tolist()), least, most, split.bound)
                found.append(self._propose(moved_split))
        return sorted(found, key=_most_expected)

    def least_price(self, capacity: float) -> float:
        """Return a bound on the price of splits that carry a multiple of the offered load."""
        program, *_ = cheapest_program(self.problem(), self.prices, capacity)
        return program.solve(time_limit_s=5.0).bound

    def split_of(self, deployment: Deployment) -> Split:
        """Return a deployment's split, with a bound for as many GPUs where they are of one group."""
        x, y = ([0] * len(self.kinds) for _ in range(2))
        for engine, count, role in zip(
            deployment.engines, deployment.counts, deployment.roles, strict=True
        ):
            for k, kind in enumerate(self.kinds):
                if engine is (kind.prefill if role == "prefill" else kind.decode):
                    (x if role == "prefill" else y)[k] += count
        one_group = len(self.spec.cluster.nodes) == 1
        problem = self.problem(deployment.gpus if one_group else None)
        least, most = capacity_of(problem, x, y)
        bound = max(best_split(problem).bound, least)
        return Split(tuple(x), tuple(y), least, most, bound)

    def _pairs(self) -> list[tuple[int, int]]:
        return [
            (p, d)
            for p, prefill in enumerate(self.kinds)
            for d, decode in enumerate(self.kinds)
            if prefill.prefill_speed and decode.decode_speed
        ]

    def _cheapest_mix(self, problem: SplitProblem, headroom: float) -> Iterator[Counts]:
        """Yield the cheapest mix of workers that carries a multiple of the load."""
        program, prefill, decode = cheapest_program(problem, self.prices, headroom)
        values = program.solve(time_limit_s=2.0).values
        if len(values):
            x, y = (np.rint(values[v]).astype(np.int64) for v in (prefill, decode))
            yield tuple(x.tolist()), tuple(y.tolist())

    def _cheapest_pairs(self, problem: SplitProblem, headroom: float) -> Iterator[Counts]:
        """Yield for each pair of kinds the fewest workers that carry a multiple of the load."""
        for p, d in self._pairs():
            x, y = np.zeros(len(self.kinds), np.int64), np.zeros(len(self.kinds), np.int64)
            x[p] = ceil(headroom * problem.prefill_load / problem.prefill_speed[p] - 1e-9)
            y[d] = ceil(headroom * problem.decode_load / problem.decode_speed[d] - 1e-9)
            used = np.bincount(problem.group, (x + y) * problem.size, len(problem.gpus))
            if (used <= problem.gpus).all():
                yield tuple(x.tolist()), tuple(y.tolist())

    def _propose(self, split: Split) -> Proposal:
        slos = self.spec.slo.classes.values()
        expected = in_time(
            self.load,
            self.kinds,
            split,
            ttft_s=min((slo.ttft_s or np.inf) for slo in slos),
            tpot_s=tightest_tpot_s(self.spec),
            local_share=self.local_share,
            by_session=self.spec.workload.counts_sessions,
        )
        price = float(np.add(split.prefill, split.decode) @ self.prices)
        return Proposal(split, deployment_of(self.kinds, split), price, expected)

    def _too_small(self, problem: SplitProblem, whole: Split) -> str:
        pre, dec = (
            np.asarray(workers) @ speed
            for workers, speed in zip(
                whole.counts, (problem.prefill_speed, problem.decode_speed), strict=True
            )
        )
        gpus = int(problem.gpus.sum())
        longer = ""
        if np.isfinite(tightest_tpot_s(self.spec)):
            longer = f", or allow a longer TPOT than {show_s(tightest_tpot_s(self.spec))}"
        return (
            f"the constraint is the number of GPUs: the best split of {gpus} carries "
            f"{whole.capacity:.1%} of the load ({self.load.rounds_per_s:.3g} rounds a second, "
            f"{self.load.decode_tokens_per_s:.4g} decoded tokens a second), held up by "
            f"{'prefill' if pre <= dec else 'decode'} workers. About {ceil(gpus / whole.capacity)} GPUs "
            "of this kind would carry it with nothing to spare; or lower the rate "
            f"(workload.rate_scale){longer}."
        )


def _most_expected(proposal: Proposal) -> tuple[float, float]:
    return -proposal.expected, proposal.split.load


def deployment_of(kinds: list[Kind], split: Split) -> Deployment:
    """Return a split as engines, counts and roles."""
    chosen: list[tuple[Engine, int, Role]] = [
        (kind.prefill, n, "prefill") for kind, n in zip(kinds, split.prefill, strict=True) if n
    ]
    chosen += [(kind.decode, n, "decode") for kind, n in zip(kinds, split.decode, strict=True) if n]
    engines, counts, roles = zip(*chosen, strict=True)
    return Deployment(engines, counts, roles)
