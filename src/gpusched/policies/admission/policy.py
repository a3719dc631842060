"""Admission policies by name: ``name``, ``name+parameter=value+...`` or ``file.py:function``.

A user's own function returns the seconds to hold a request before it is asked again; 0 lets it in
and infinity rejects it (see ``gpusched.policies.custom``).
"""

import inspect
from dataclasses import dataclass

from gpusched.policies.admission import gate as gates
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
    lowest_interval_s: float = 0.002
    """Between two releases at least."""
    network_s: float = 0.0
    """From the scheduler to an engine."""
    window_passes: int = 32
    """Passes whose mean time sets the interval between releases."""
    age_limit: int = 0
    """Releases that may pass a request over before it is rejected; 0 for any number."""
    gate: int = gates.OCCUPANCY
    prompt_price: float = 1.0
    """Of a prompt token, in any unit; classes are let in by what they earn."""
    output_price: float = 2.0
    burst: float = 2.0
    """Most credits of a class."""
    hold: Compiled | None = None
    """A user's own function."""


_PRICES = ("prompt_price", "output_price")
_ALL = (
    AdmissionPolicy("none", "every request goes to an engine at once", NONE),
    AdmissionPolicy("staggered", "hold, and release packed batches one replica at a time (SBS)",
                    STAGGERED, ("lowest_interval_s", "network_s", "window_passes", "age_limit")),
    AdmissionPolicy("gate-and-route", "one prefill a replica, classes at a fluid plan's occupancy",
                    GATED, _PRICES),
    AdmissionPolicy("gate-and-route-capped", "the same; classes the plan sheds are capped",
                    GATED, _PRICES, gate=gates.CAPPED),
    AdmissionPolicy("gate-and-route-credit", "the same; classes the plan sheds are let in at its rate",
                    GATED, (*_PRICES, "burst"), gate=gates.CREDIT),
)  # fmt: skip

ADMISSION = {policy.name: policy for policy in _ALL}

_RANGES = {
    "lowest_interval_s": (0.0, 1e3),
    "network_s": (0.0, 1e3),
    "window_passes": (1, 10_000),
    "age_limit": (0, 1e9),
    "prompt_price": (0.0, 1e9),
    "output_price": (0.0, 1e9),
    "burst": (1.0, 1e6),
}


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
