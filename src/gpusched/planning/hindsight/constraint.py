"""A scheduling model on CP-SAT (the extra ``ortools``): completions, memory in last rounds only."""

import importlib.util
import itertools
from collections.abc import Sequence

import numpy as np

from gpusched.planning.hindsight.bounds import keep_apart
from gpusched.policies.batching.rounds import Ints


def has_cp() -> bool:
    """Whether OR-tools are installed."""
    return importlib.util.find_spec("ortools") is not None


def constraint_program(
    a: Ints,
    s: Ints,
    o: Ints,
    kv_tokens: int,
    incumbent: Ints,
    latest: Ints,
    floor: int,
    limit_s: float,
    threads: int,
    seed: int,
) -> tuple[Ints | None, float]:
    """Return the starts of the best schedule found, None if there is none, and a bound of the sum of
    completions.

    ``latest`` completions hold for every schedule as good as the ``incumbent``; the sum of completions
    is known to be at least ``floor``. Requests that peak above half of the budget keep apart
    (see ``bounds``).
    """
    from ortools.sat.python import cp_model

    n = len(a)
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
        model.add(sum(terms) <= kv_tokens - int(s[i] + o[i]))
    for i, k in _equal_pairs(a, s, o):
        model.add(completion[i] <= completion[k])
    model.minimize(sum(completion))
    model.add(sum(completion) <= int((incumbent + o).sum()))
    model.add(sum(completion) >= floor)
    for i in range(n):
        model.add_hint(completion[i], int(incumbent[i] + o[i]))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = max(threads, 1)
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    bound = float(solver.best_objective_bound)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, bound
    return np.array([solver.value(c) for c in completion], np.int64) - o, bound


def _equal_pairs(a: Ints, s: Ints, o: Ints) -> Sequence[tuple[int, int]]:
    """Return pairs of requests of equal lengths, the earlier to arrive first: exchanging two of them
    never hurts, so some optimum completes them in this order."""
    order = sorted(range(len(a)), key=lambda i: (s[i], o[i], a[i], i))
    return [(i, k) for i, k in itertools.pairwise(order) if s[i] == s[k] and o[i] == o[k]]
