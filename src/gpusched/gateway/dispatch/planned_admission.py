"""The admission that a plan names."""

from functools import cache

from gpusched.domain.plan import Plan
from gpusched.errors import InputError
from gpusched.gateway.dispatch.admission import Admission, AtOnce, Desk
from gpusched.gateway.dispatch.custom_admission import Asked
from gpusched.gateway.dispatch.deadlines import CallAt
from gpusched.gateway.dispatch.dispatcher import AdmissionOf
from gpusched.gateway.dispatch.engine_times import (
    BUDGET_TOKENS,
    FIXED_S,
    TOKEN_S,
    EngineTimes,
    engine_times,
)
from gpusched.gateway.dispatch.fleet import Group
from gpusched.gateway.dispatch.gated_admission import Gated
from gpusched.gateway.dispatch.staggered_admission import Staggered
from gpusched.policies.admission import dispatcher
from gpusched.policies.admission.fluid import fluid_plan
from gpusched.policies.admission.policy import CUSTOM, GATED, STAGGERED, admission_policy
from gpusched.policies.admission.service import Prices, RequestClass, ServerModel


def admission_for(plan: Plan, call_at: CallAt) -> AdmissionOf:
    """Return what makes the admission of each group of engines.

    Raises:
        InputError: no such policy, or the plan's engines are not of one kind where they must be.
    """
    policy = admission_policy(plan.admission)
    times: dict[str, tuple[EngineTimes, int]] = {}
    if policy.kind in (GATED, STAGGERED):
        times = _times_of_groups(plan)
        _warm_up(policy.kind)

    def of(desk: Desk, group: Group) -> Admission:
        if policy.kind == CUSTOM:
            assert policy.hold is not None
            return Asked(desk, group, policy.hold)
        if policy.kind == GATED:
            return Gated(desk, group, policy, plan.slo.names, times[group.model][0], call_at)
        if policy.kind == STAGGERED:
            return Staggered(
                desk, group, policy, times[group.model][1], times[group.model][0], call_at
            )
        return AtOnce(desk, group)

    return of


@cache
def _warm_up(kind: int) -> None:
    """Compile and import what decisions call, so that no request waits for it."""
    if kind == STAGGERED:
        dispatcher.warm_up()
    else:
        example = RequestClass("example", 1.0, 100.0, 100.0)
        fluid_plan([example], ServerModel(2, 128, 0.01, 1e-4, 0.01), Prices(1.0, 1.0))


def _times_of_groups(plan: Plan) -> dict[str, tuple[EngineTimes, int]]:
    """Return times and data-parallel units of the engines that requests enter, by model."""
    if plan.layers is not None:
        return {plan.model: (EngineTimes(FIXED_S, TOKEN_S, BUDGET_TOKENS), 1)}
    stages = range(len(plan.cascade.stages)) if plan.cascade is not None else (None,)
    found = {}
    for stage in stages:
        part = plan if stage is None else plan.stage_plan(stage)
        pools = [pool for pool in part.pools if pool.role != "decode" and pool.endpoints]
        if not pools:
            continue  # said by whoever looks for the engines
        kinds = {(pool.gpu, pool.layout, pool.engine.max_num_batched_tokens) for pool in pools}
        if len(kinds) > 1:
            raise InputError(
                f"admission {plan.admission} plans for engines of one kind; the pools of "
                f"{part.model} where requests enter are of {len(kinds)}"
            )
        found[part.model] = engine_times(part, pools[0]), pools[0].data_parallel_size
    return found
