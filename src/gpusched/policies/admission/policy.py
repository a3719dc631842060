"""Admission policies by name: ``name``, ``name+parameter=value+...`` or ``file.py:function``.

A user's own function returns the seconds to hold a request before it is asked again; 0 lets it in
and infinity rejects it (see ``gpusched.policies.custom``).
"""

import inspect
from dataclasses import dataclass

from gpusched.policies.custom import Compiled, compiled_policy, is_custom
from gpusched.policies.parameters import read_policy

NONE, STAGGERED, GATED, CUSTOM = range(4)


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """One admission policy with its parameters."""

    name: str
    summary: str
    kind: int
    parameters: tuple[str, ...] = ()
    hold: Compiled | None = None
    """A user's own function."""


_ALL = (AdmissionPolicy("none", "every request goes to an engine at once", NONE),)

ADMISSION = {policy.name: policy for policy in _ALL}

_RANGES: dict[str, tuple[float, float]] = {}


def admission_policy(text: str) -> AdmissionPolicy:
    """Return the admission policy that ``text`` names, with the parameters it sets.

    Raises:
        InputError: no such policy or parameter, or a value out of range.
    """
    if is_custom(text):
        hold = compiled_policy(text, "admission")
        summary = inspect.getdoc(hold.function) or "a user's policy"
        return AdmissionPolicy(text, summary, CUSTOM, hold=hold)
    return read_policy("admission", text, ADMISSION, _RANGES)
