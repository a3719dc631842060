"""Which of vLLM's options give an engine the plan's batching discipline."""

from typing import Any

from gpusched.domain.plan import PlannedPool
from gpusched.errors import InputError
from gpusched.policies.batching.discipline import DISCIPLINES, discipline
from gpusched.policies.custom import is_custom

PLUG_IN = "gpusched.integrations.vllm.Scheduler"
"""Dotted, for so vLLM reads ``--scheduler-cls``."""
PLUG_IN_POLICIES = (
    "sjf", "mlfq", "mc-sf", "mc-volume", "mc-fcfs", "a-max", "wait", "nested-wait"
)  # fmt: skip


def needs_plug_in(pool: PlannedPool) -> bool:
    """Return whether a pool's engines run a policy of gpusched, which must then be installed there."""
    return "scheduler_cls" in scheduler_options(pool)


def scheduler_options(pool: PlannedPool) -> dict[str, Any]:
    """Return vLLM's options for a pool's batching.

    Raises:
        InputError: vLLM runs that discipline neither by itself nor with our scheduler.
    """
    name, *settings = pool.engine.batching.split("+")
    if not is_custom(pool.engine.batching):
        discipline(pool.engine.batching)
    if name == "vllm":
        return {}
    if name == "priority":
        return {"scheduling_policy": "priority"}
    if name == "sarathi":
        given = dict(setting.split("=", 1) for setting in settings)
        chunk = int(given.get("chunk_tokens", DISCIPLINES["sarathi"].chunk_tokens))
        return {
            "max_num_batched_tokens": max(chunk, pool.engine.max_num_seqs),
            "scheduler_reserve_full_isl": True,
            "watermark": float(given.get("margin", DISCIPLINES["sarathi"].margin)),
        }
    if name in PLUG_IN_POLICIES:
        return {
            "scheduler_cls": PLUG_IN,
            "additional_config": {"gpusched": {"batching": pool.engine.batching}},
        }
    raise InputError(
        f"pool {pool.name}: vLLM does not run batching {pool.engine.batching!r}; it runs vllm, "
        f"priority and sarathi by itself and {', '.join(PLUG_IN_POLICIES)} with gpusched's scheduler"
    )
