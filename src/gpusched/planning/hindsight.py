"""The hindsight optimum of a single engine under a KV budget: what no online policy can beat.

All arrivals and lengths are known. A request started in round ``p`` runs for ``o`` rounds without
interruption and holds ``s + k`` tokens in its ``k``-th; the sum over running requests must stay
within ``M``; the sum of end-to-end latencies is minimised (MC-SF, arXiv 2502.07115, Section 2).

Two exact methods: the paper's time-indexed program (A1)-(A4) on HiGHS, and a scheduling model on
CP-SAT whose strength is the rule below.

*Peaks keep apart.* A request peaks at ``P = s + o`` in its last round and then frees it all. If
``i`` completes before ``k`` and ``k`` runs in ``i``'s last round, it holds ``P_k - (c_k - c_i)``
there; so ``c_k - c_i >= P_i + P_k - M``. If it does not run, ``c_k - c_i >= o_k``. With
``x = min(P - M/2, o)`` and ``y = min(P - M/2, M/2 - S)``, ``S`` the largest prompt, both are at least
``y_i + x_k``, so for requests of ``P > M/2`` the intervals ``[c - x, c + y]`` are disjoint: one
machine, on which the shortest go first in the relaxation. That bound is close to the optimum where
the volume bound and the program's linear relaxation are far from it.
"""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.compilation import entry_kernel, kernel
from gpusched.errors import InputError
from gpusched.policies.batching.rounds import Ints, checked, mc_sf_starts

Halves = NDArray[np.float64]


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


def latency_bound(
    arrival: ArrayLike, prompt: ArrayLike, output: ArrayLike, kv_tokens: int
) -> float:
    """Return a lower bound of the total latency.

    The ``j``-th completion is no earlier than the ``j`` smallest volumes over the budget, than the
    ``j``-th earliest possible completion, and, among large requests, than their disjoint intervals
    allow; or all large ones together are no earlier than on one machine, shortest first.
    """
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    volumes = np.sort(s * o + o * (o + 1) // 2).cumsum()
    by_volume = int(a.min()) + np.ceil(volumes / kv_tokens)
    by_rank = np.maximum(by_volume, np.sort(a + o))
    large, left, right = keep_apart(s, o, kv_tokens)
    if not large.any():
        return float(by_rank.sum() - a.sum())
    earliest = float((a + o - left)[large].min())
    before = np.concatenate(([0.0], np.sort((left + right)[large]).cumsum()[:-1]))
    apart = np.ceil(earliest + before + left[large].min() - 1e-9)
    small = len(a) - int(large.sum())
    by_rank[small:] = np.maximum(by_rank[small:], apart)
    together = len(before) * earliest + before.sum() + left[large].sum() + (a + o)[~large].sum()
    return float(max(by_rank.sum(), np.ceil(together - 1e-9)) - a.sum())


def keep_apart(s: Ints, o: Ints, kv_tokens: int) -> tuple[NDArray[np.bool_], Halves, Halves]:
    """Return which requests are large, and how long before and after its completion each large one
    keeps the completions of the others away, in rounds."""
    left = np.minimum(s + o - kv_tokens / 2.0, o)
    large = left > 0
    longest = float(s[large].max()) if large.any() else 0.0
    right = np.clip(left, 0.0, max(kv_tokens / 2.0 - longest, 0.0))
    return large, left, right


def hindsight_optimum(
    arrival: ArrayLike,
    prompt: ArrayLike,
    output: ArrayLike,
    kv_tokens: int,
    *,
    method: str = "auto",
    time_limit_s: float = 60.0,
    threads: int = 2,
    seed: int = 0,
) -> HindsightSchedule:
    """Return the best schedule found and a bound, arrays of shape (requests,) in rounds and tokens.

    ``method`` is ``cp`` (CP-SAT, the extra ``ortools``), ``program`` (HiGHS), or ``auto``: the
    first where it is installed.

    Raises:
        InputError: a request can never be served, lengths are not positive, or the method is
            unknown or not installed.
    """
    a, s, o = checked(arrival, prompt, output, kv_tokens)
    if method not in ("auto", "cp", "program"):
        raise InputError(f"method must be auto, cp or program, got {method!r}")
    if method != "program":
        try:
            from ortools.sat.python import cp_model  # noqa: F401
        except ImportError:
            if method == "cp":
                raise InputError(
                    "method cp needs OR-tools: pip install 'gpusched[ortools]'"
                ) from None
            method = "program"
        else:
            method = "cp"
    began = time.perf_counter()
    incumbent = best_heuristic(a, s, o, kv_tokens, seed=seed)
    solve = _constraint_program if method == "cp" else _time_indexed_program
    starts, bound = solve(a, s, o, kv_tokens, incumbent, time_limit_s, threads, seed)
    wrong = check_schedule(a, s, o, kv_tokens, starts)
    assert not wrong, wrong
    total = int((starts + o - a).sum())
    return HindsightSchedule(
        starts,
        starts + o,
        total,
        max(bound, latency_bound(a, s, o, kv_tokens)),
        method,
        time.perf_counter() - began,
    )


def best_heuristic(
    a: Ints, s: Ints, o: Ints, kv_tokens: int, *, moves: int = 4000, seed: int = 0
) -> Ints:
    """Return the best schedule of the look-ahead policies, improved by simulated annealing.

    A schedule is read from a priority list: each request in turn takes the earliest start at which
    it fits between those placed before it. A move takes a request to another place of the list.
    """
    candidates = [
        mc_sf_starts(a, s, o, kv_tokens, order=order, continue_on_misfit=skip)
        for order in ("output", "volume", "peak")
        for skip in (False, True)
    ]
    best = min(candidates, key=lambda starts: int((starts + o).sum()))
    if len(a) == 1 or moves == 0:
        return best
    rng = np.random.default_rng(seed)
    profile = np.zeros(int(a.max() + o.sum()) + 2, np.int64)
    found = best.copy()
    _anneal(
        a, s, o, kv_tokens, np.argsort(best, kind="stable"), rng.random((moves, 3)), profile,
        np.empty_like(best), np.empty_like(best), found,
    )  # fmt: skip
    return min(best, found, key=lambda starts: int((starts + o).sum()))


@entry_kernel
def _anneal(a, s, o, budget, order, draws, profile, trial, starts, best):  # type: ignore[no-untyped-def]
    """Improve a priority list in place; ``best`` receives the best schedule met."""
    n = len(a)
    current = _place(a, s, o, budget, order, profile, starts)
    least = current
    for k in range(n):
        best[k] = starts[k]
    heat = 0.02 * current
    for step in range(len(draws)):
        temperature = heat * (1.0 - step / len(draws)) ** 2 / n + 1e-9
        i = int(draws[step, 0] * n)
        j = int(draws[step, 1] * n)
        for k in range(n):
            trial[k] = order[k]
        moved = trial[i]
        if i < j:
            for k in range(i, j):
                trial[k] = trial[k + 1]
        else:
            for k in range(i, j, -1):
                trial[k] = trial[k - 1]
        trial[j] = moved
        total = _place(a, s, o, budget, trial, profile, starts)
        if total <= current or draws[step, 2] < math.exp((current - total) / temperature):
            current = total
            for k in range(n):
                order[k] = trial[k]
            if total < least:
                least = total
                for k in range(n):
                    best[k] = starts[k]


@kernel
def _place(a, s, o, budget, order, profile, starts):  # type: ignore[no-untyped-def]
    """Place requests in order, each at its earliest feasible start; return the sum of completions."""
    total = 0
    for t in range(len(profile)):
        profile[t] = 0
    for index in range(len(order)):
        i = order[index]
        p = a[i]
        k = 1
        while k <= o[i]:
            excess = profile[p + k] + s[i] + k - budget
            if excess > 0:
                # by then the request must hold less, or not yet run
                p += min(excess, k)
                k = 1
            else:
                k += 1
        for k in range(1, o[i] + 1):
            profile[p + k] += s[i] + k
        starts[i] = p
        total += p + o[i]
    return total


def _constraint_program(
    a: Ints,
    s: Ints,
    o: Ints,
    kv_tokens: int,
    incumbent: Ints,
    limit_s: float,
    threads: int,
    seed: int,
) -> tuple[Ints, float]:
    from ortools.sat.python import cp_model

    n = len(a)
    total = int((incumbent + o).sum())
    latest = _latest_completion(a, s, o, kv_tokens, total)
    model = cp_model.CpModel()
    completion = [model.new_int_var(int(a[i] + o[i]), int(latest[i]), f"c{i}") for i in range(n)]
    large, left, right = keep_apart(s, o, kv_tokens)
    intervals = []
    for i in np.flatnonzero(large).tolist():
        # doubled time keeps half rounds whole
        begin = 2 * completion[i] - round(2 * left[i])
        intervals.append(
            model.new_fixed_size_interval_var(begin, round(2 * (left[i] + right[i])), f"w{i}")
        )
    model.add_no_overlap(intervals)
    # memory is at its largest in last rounds: sum there over those that run
    for i in range(n):
        held = [int(s[i] + o[i])]
        terms: list[cp_model.LinearExpr | int] = []
        for k in range(n):
            if k == i:
                continue
            # contribution of k in i's last round: s_k + o_k - (c_k - c_i) if 0 <= c_k - c_i < o_k
            later = int(latest[k] - (a[i] + o[i]))
            if later < 0:
                continue
            runs = model.new_bool_var("")
            after = model.new_bool_var("")
            before = model.new_bool_var("")
            gap = completion[k] - completion[i]
            model.add(gap >= 0).only_enforce_if(runs)
            model.add(gap <= int(o[k]) - 1).only_enforce_if(runs)
            model.add(gap <= -1).only_enforce_if(before)
            model.add(gap >= int(o[k])).only_enforce_if(after)
            model.add_exactly_one(runs, after, before)
            amount = model.new_int_var(0, int(s[k] + o[k]), "")
            model.add(amount == int(s[k] + o[k]) - gap).only_enforce_if(runs)
            model.add(amount == 0).only_enforce_if(~runs)
            terms.append(amount)
        model.add(sum(terms) + held[0] <= kv_tokens)
    for i, k in _equal_pairs(a, s, o):
        model.add(completion[i] <= completion[k])
    model.minimize(sum(completion))
    model.add(sum(completion) <= total)
    model.add(sum(completion) >= int(np.ceil(latency_bound(a, s, o, kv_tokens) + a.sum() - 1e-6)))
    for i in range(n):
        model.add_hint(completion[i], int(incumbent[i] + o[i]))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = max(threads, 1)
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        starts = np.array([solver.value(c) for c in completion], np.int64) - o
    else:
        starts = incumbent
    return starts, float(solver.best_objective_bound - a.sum())


def _latest_completion(a: Ints, s: Ints, o: Ints, kv_tokens: int, total: int) -> Ints:
    """Return for each request a round by which it completes in every schedule no worse than
    ``total``: what the others need at least is left over."""
    n = len(a)
    horizon = int(a.max() + o.sum())
    latest = np.empty(n, np.int64)
    for i in range(n):
        rest = np.arange(n) != i
        others = latency_bound(a[rest], s[rest], o[rest], kv_tokens) + a[rest].sum() if n > 1 else 0
        latest[i] = min(horizon, int(total - others))
    return latest


def _equal_pairs(a: Ints, s: Ints, o: Ints) -> Sequence[tuple[int, int]]:
    """Return pairs of requests of equal lengths, the earlier to arrive first: exchanging two of them
    never hurts, so some optimum completes them in this order."""
    order = sorted(range(len(a)), key=lambda i: (s[i], o[i], a[i], i))
    return [(i, k) for i, k in itertools.pairwise(order) if s[i] == s[k] and o[i] == o[k]]


def _time_indexed_program(
    a: Ints,
    s: Ints,
    o: Ints,
    kv_tokens: int,
    incumbent: Ints,
    limit_s: float,
    threads: int,
    seed: int,
) -> tuple[Ints, float]:
    """Solve (A1)-(A4), the horizon cut to where an optimum can end."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    total = int((incumbent + o).sum())
    latest = _latest_completion(a, s, o, kv_tokens, total)
    who = np.concatenate([np.full(int(latest[i] - o[i] - a[i] + 1), i) for i in range(len(a))])
    when = np.concatenate([np.arange(int(a[i]), int(latest[i] - o[i]) + 1) for i in range(len(a))])
    columns = len(who)
    rows, cols, values = [], [], []
    for column in range(columns):
        i, p = who[column], when[column]
        t = np.arange(p + 1, p + o[i] + 1)
        rows.append(t)
        cols.append(np.full(len(t), column))
        values.append(s[i] + t - p)
    horizon = int(latest.max()) + 1
    memory = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), (horizon, columns)
    )
    once = coo_array((np.ones(columns), (who, np.arange(columns))), (len(a), columns))
    answer = milp(
        when.astype(np.float64),
        constraints=[LinearConstraint(memory, -np.inf, kv_tokens), LinearConstraint(once, 1, 1)],
        integrality=np.ones(columns, np.int64),
        bounds=Bounds(0, 1),
        options={"time_limit": limit_s, "mip_rel_gap": 0.0},
    )
    starts: NDArray[np.int64] = incumbent
    if answer.x is not None:
        starts = np.zeros(len(a), np.int64)
        chosen = answer.x > 0.5
        starts[who[chosen]] = when[chosen]
        if int((starts + o).sum()) > total:
            starts = incumbent
    bound = answer.mip_dual_bound if answer.mip_dual_bound is not None else -np.inf
    return starts, float(bound + (o - a).sum())
