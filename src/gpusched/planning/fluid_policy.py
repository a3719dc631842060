"""Policies by name, set from a fluid plan (arXiv 2602.02987, Sections 4 to 6)."""

from dataclasses import dataclass

import numpy as np

from gpusched.errors import InputError, unknown_name
from gpusched.policies.admission.fluid import FluidPlan
from gpusched.sim.theory.servers import BURST, Control


@dataclass(frozen=True, slots=True)
class Recipe:
    """A gate, a router, and whether only the plan's mixed servers take prefills."""

    gate: str
    router: str
    planned: bool
    meaning: str


POLICIES = {
    "gate-and-route": Recipe(
        "occupancy", "decode-first", True, "gate by occupancy, decodes to solo servers first"
    ),
    "gate-and-route-capped": Recipe(
        "capped", "decode-first", True, "the same, shed classes capped at their target"
    ),
    "gate-and-route-credit": Recipe(
        "credit", "decode-first", True, "the same, shed classes admitted at their planned rate"
    ),
    "split": Recipe(
        "occupancy", "split", True, "gate by occupancy, decodes to pools at the plan's odds"
    ),
    "prioritize-and-route": Recipe(
        "priority", "decode-first", True, "most output tokens a prompt token first"
    ),
    "first-come-planned": Recipe(
        "first-come", "decode-first", True, "the plan's pools without its gate"
    ),
    "gate-prefill-first": Recipe(
        "occupancy", "prefill-first", False, "gate by occupancy, any server, prefills first"
    ),
    "gate-stay": Recipe(
        "occupancy", "stay", False, "gate by occupancy, decodes where their prefill was"
    ),
    "first-come-stay": Recipe(
        "first-come", "stay", False, "first come first served, decodes where their prefill was"
    ),
}

PAPER_NAMES = {
    "GG-SP": "gate-and-route",
    "GI-WSP": "gate-stay",
    "GF-WSP": "gate-prefill-first",
    "FG-SP": "first-come-planned",
    "FI-WSP": "first-come-stay",
}
"""The five policies of Section 6."""


def control_for(
    plan: FluidPlan, servers: int, policy: str = "gate-and-route", *, burst: float = BURST
) -> Control:
    """Return a policy's parameters for a cluster of ``servers``.

    Raises:
        InputError: no such policy.
    """
    if policy not in POLICIES:
        raise InputError(unknown_name("policy", policy, POLICIES))
    recipe = POLICIES[policy]
    weights = None
    if recipe.router == "split" and (plan.decode_queue > 1e-9).any():
        tokens = np.array([c.output_tokens for c in plan.classes])
        weights = np.stack([plan.solo_decodes, plan.mixed_decodes]) / tokens
    return Control(
        recipe.gate,
        recipe.router,
        plan.mixed_servers(servers) if recipe.planned else None,
        servers * plan.prefills,
        servers * plan.prefill_queue,
        plan.metered,
        servers * plan.prefill_rps,
        np.array([c.output_tokens / c.prompt_tokens for c in plan.classes]),
        plan.to_solo,
        weights,
        burst,
    )
