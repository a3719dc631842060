"""The time-indexed program (A1)-(A4) on HiGHS, plain or with level rows and only useful completions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from gpusched.planning.hindsight.levels import level_weights
from gpusched.policies.batching.rounds import Ints


def time_indexed_program(
    a: Ints,
    s: Ints,
    o: Ints,
    kv_tokens: int,
    allowed: NDArray[np.bool_],
    limit_s: float,
    levels: Sequence[int] = (),
) -> tuple[Ints | None, float]:
    """Return the starts of the best schedule found, None if there is none, and a bound of the sum of
    completions, infinite if no schedule keeps to ``allowed``.

    ``allowed`` tells in which rounds requests may complete, shape (requests, rounds). Requests alike
    are one integer variable a round.
    """
    kinds, first, kind_of, count = np.unique(
        np.stack([a, s, o]), axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    _, prompt, output = kinds
    may = np.zeros((len(first), allowed.shape[1]), bool)
    np.logical_or.at(may, kind_of.ravel(), allowed)
    who, when = np.nonzero(may)
    columns = len(who)
    longest = int(output.max())
    held = np.maximum(np.arange(1 - longest, 1) + output[:, None], 0)
    held = np.where(held > 0, held + prompt[:, None], 0)
    rows = [(held, longest - 1, kv_tokens)]
    rows += [(*level_weights(prompt, output, kv_tokens, q), q - 1) for q in levels]
    once = coo_array((np.ones(columns), (who, np.arange(columns))), (len(first), columns))
    constraints = [LinearConstraint(once, count, count)]
    for weights, before, room in rows:
        entry, offset = np.nonzero(weights[who])
        at = when[entry] + offset - before
        matrix = coo_array(
            (weights[who[entry], offset].astype(np.float64), (at, entry)),
            (int(at.max(initial=0)) + 1, columns),
        )
        constraints.append(LinearConstraint(matrix, -np.inf, room))
    answer = milp(
        when.astype(np.float64),
        constraints=constraints,
        integrality=np.ones(columns, np.int64),
        bounds=Bounds(0, count[who]),
        options={"time_limit": limit_s, "mip_rel_gap": 0.0},
    )
    if answer.status == 2:
        return None, np.inf
    bound = -np.inf if answer.mip_dual_bound is None else float(answer.mip_dual_bound)
    if answer.x is None:
        return None, bound
    times = np.repeat(when, np.rint(answer.x).astype(np.int64))
    owners = np.repeat(who, np.rint(answer.x).astype(np.int64))
    completions = np.empty(len(a), np.int64)
    completions[np.argsort(kind_of.ravel(), kind="stable")] = times[
        np.argsort(owners, kind="stable")
    ]
    return completions - o, bound
