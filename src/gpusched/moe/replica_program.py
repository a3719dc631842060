"""The planning problem of replicas as a mixed-integer program (B8 to B12), the oracle for small cases."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.moe.expert_layer import ExpertLayer, Mask
from gpusched.solve.milp import Program

Floats = NDArray[np.float64]


class BestReplicas(NamedTuple):
    """The optimum, or what is known of it."""

    hosted: Mask
    remote: Floats
    latency_s: float
    bound_s: float


def best_replicas(
    layer: ExpertLayer,
    tokens: ArrayLike,
    budget: ArrayLike | None = None,
    *,
    time_limit_s: float = 30.0,
) -> BestReplicas:
    """Return replicas and split that make the largest latency of a rank least.

    Tokens of a rank that hosts their expert stay there. Each rank takes in, and sends, at most
    ``budget`` replicas. For tens of experts on a few ranks.
    """
    n = layer.check_tokens(tokens)
    experts, ranks = n.shape
    slots = np.full(ranks, layer.replica_slots)
    most = slots if budget is None else np.minimum(np.asarray(budget, np.int64), slots)
    total = n.sum(axis=1)
    expert, rank = np.indices((experts, ranks))
    native = layer.natives().astype(bool)
    program = Program()
    ceiling = program.variables((), cost=1.0)
    hosts = program.variables((experts, ranks), lower=native.astype(float), upper=1.0, integer=True)
    active = program.variables((experts, ranks), upper=1.0, integer=layer.expert_s > 0)
    remote = program.variables((experts, ranks))
    busier = program.variables(ranks)
    # each pool is what ranks without the expert hold
    program.rows(
        np.concatenate([expert.ravel(), expert.ravel()]),
        np.concatenate([remote.ravel(), hosts.ravel()]),
        np.concatenate([np.ones(n.size), n.ravel()]),
        lower=total, upper=total,
    )  # fmt: skip
    each = np.arange(n.size)
    several = np.concatenate
    program.rows(
        several([each, each]), several([remote.ravel(), hosts.ravel()]),
        several([np.ones(n.size), -total[expert].ravel()]), upper=0.0,
    )  # fmt: skip
    if layer.expert_s > 0:
        program.rows(
            several([each, each, each]),
            several([remote.ravel(), hosts.ravel(), active.ravel()]),
            several([np.ones(n.size), n.ravel(), -total[expert].ravel()]), upper=0.0,
        )  # fmt: skip
    by_rank = rank.ravel()
    program.rows(
        several([by_rank, np.arange(ranks)]), several([remote.ravel(), busier]),
        several([np.ones(n.size), -np.ones(ranks)]), upper=0.0,
    )  # fmt: skip
    program.rows(
        several([by_rank, np.arange(ranks)]), several([hosts.ravel(), busier]),
        several([-n.ravel(), -np.ones(ranks)]), upper=-n.sum(axis=0),
    )  # fmt: skip
    program.rows(
        several([by_rank, by_rank, by_rank, np.arange(ranks), np.arange(ranks)]),
        several([
            remote.ravel(), hosts.ravel(), active.ravel(), busier, np.full(ranks, int(ceiling))
        ]),
        several([
            np.full(n.size, layer.token_s), layer.token_s * n.ravel(),
            np.full(n.size, layer.expert_s), np.full(ranks, layer.exchange_token_s),
            -np.ones(ranks),
        ]),
        upper=0.0,
    )  # fmt: skip
    program.rows(by_rank, hosts.ravel(), 1.0, upper=most + native.sum(axis=0))
    home = np.repeat(layer.home, ranks)
    program.rows(home, hosts.ravel(), 1.0, upper=most + native.sum(axis=0))
    found = program.solve(time_limit_s=time_limit_s, relative_gap=1e-6)
    hosted = (found.values[hosts] > 0.5).astype(np.uint8)
    return BestReplicas(hosted, found.values[remote] * hosted, found.objective, found.bound)


def best_split(layer: ExpertLayer, tokens: ArrayLike, hosted: Mask) -> float:
    """Return the least largest latency of a given placement by linear programming; every host of an
    expert with a pool counts as active."""
    n = layer.check_tokens(tokens)
    experts, ranks = n.shape
    pool = (n * (1 - hosted)).sum(axis=1)
    own = n * hosted
    outward = (n - own).sum(axis=0)
    active = ((own + pool[:, None] * hosted) > 0).sum(axis=0)
    fixed = layer.token_s * own.sum(axis=0) + layer.expert_s * active
    program = Program()
    ceiling = program.variables((), cost=1.0)
    remote = program.variables((experts, ranks), upper=pool[:, None] * hosted)
    expert, rank = np.indices((experts, ranks))
    program.rows(expert, remote, 1.0, lower=pool, upper=pool)
    for per_token, constant in (
        (layer.token_s, fixed + layer.exchange_token_s * outward),
        (layer.token_s + layer.exchange_token_s, fixed),
    ):
        program.rows(
            np.concatenate([rank.ravel(), np.arange(ranks)]),
            np.concatenate([remote.ravel(), np.full(ranks, int(ceiling))]),
            np.concatenate([np.full(n.size, per_token), -np.ones(ranks)]),
            upper=-constant,
        )
    return program.solve().objective
