"""The admission that a plan names."""

from gpusched.domain.plan import Plan
from gpusched.gateway.admission import Admission, AtOnce, Desk
from gpusched.gateway.dispatcher import AdmissionOf
from gpusched.gateway.fleet import Group
from gpusched.policies.admission.policy import NONE, admission_policy


def admission_for(plan: Plan) -> AdmissionOf:
    """Return what makes the admission of each group of engines.

    Raises:
        InputError: no such policy.
    """
    policy = admission_policy(plan.admission)

    def of(desk: Desk, group: Group) -> Admission:
        if policy.kind == NONE:
            return AtOnce(desk, group)
        raise NotImplementedError(policy.name)

    return of
