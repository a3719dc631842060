"""What every target needs of a plan: each model with its pools, its checkpoint and its names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpusched.domain.catalog import aliases, load_model, model_names
from gpusched.domain.plan import Plan, PlannedPool
from gpusched.errors import InputError, unknown_name

_DTYPE_WORDS = {
    "fp8": ("fp8",),
    "nvfp4": ("nvfp4", "fp4"),
    "mxfp4": ("mxfp4",),
    "int8": ("w8a8", "int8"),
    "int4": ("int4", "awq", "gptq", "w4a16"),
}
"""Words in a checkpoint's name that tell the format of its weights."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document for a target."""

    name: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """One model and the pools that serve it."""

    name: str
    """A DNS label."""
    model: str
    """By which clients ask for it."""
    checkpoint: str
    """Hugging Face id, or folder, of the weights."""
    quantization: Literal["fp8"] | None
    """What the engine does to the weights as it loads them."""
    plan: Plan
    """Of this model alone."""
    notes: tuple[str, ...]

    @property
    def pools(self) -> tuple[PlannedPool, ...]:
        """Pools of replicas."""
        return self.plan.pools

    def of_role(self, role: str) -> tuple[PlannedPool, ...]:
        """Return the pools of one role."""
        return tuple(pool for pool in self.pools if pool.role == role)

    @property
    def disaggregated(self) -> bool:
        """Whether prefill and decode run apart."""
        return any(pool.role != "mixed" for pool in self.pools)

    def pool_name(self, pool: PlannedPool) -> str:
        """Return a DNS label for a pool."""
        return dns_label(pool.name)

    def gpus_per_node(self, pool: PlannedPool) -> int:
        """GPUs of a node that a pool runs on."""
        return self.plan.cluster.nodes[self.plan.group_index(pool)].gpus_per_node

    def nodes_per_replica(self, pool: PlannedPool) -> int:
        """Nodes that one replica spans."""
        return -(-pool.parallelism.gpus // self.gpus_per_node(pool))


def releases(plan: Plan, checkpoints: Mapping[str, str]) -> tuple[Release, ...]:
    """Return the models of a plan with their pools, one a stage of a cascade.

    Raises:
        InputError: a plan of layers or blocks, which no target runs, or engines no target has.
    """
    if plan.kind in ("layers", "blocks"):
        raise InputError(
            f"a plan of {plan.kind} spreads one model over single nodes with a router of its own, "
            "which none of the targets runs; plans of pools and cascades can be exported"
        )
    stages = (
        [plan]
        if plan.cascade is None
        else [plan.stage_plan(index) for index in range(len(plan.cascade.stages))]
    )
    asked = [stage.model for stage in stages]
    for name in checkpoints:
        if name not in asked:
            raise InputError("--checkpoint: " + unknown_name("model of the plan", name, asked))
    names = _distinct([dns_label(model_label(stage.model)) for stage in stages])
    return tuple(
        _release(name, stage, checkpoints.get(stage.model))
        for name, stage in zip(names, stages, strict=True)
    )


def _release(name: str, plan: Plan, checkpoint: str | None) -> Release:
    notes = []
    for pool in plan.pools:
        if pool.attention_gpus is not None:
            raise InputError(
                f"pool {pool.name}: attention and experts on GPUs of their own "
                f"({pool.layout}) is not a layout that vLLM or any of the targets runs"
            )
        if pool.engine.framework != "vllm":
            notes.append(
                f"pool {pool.name} was planned with the timing of {pool.engine.framework}; "
                "the export starts vLLM"
            )
    roles = {pool.role for pool in plan.pools}
    if len(roles & {"prefill", "decode"}) == 1:
        raise InputError("the plan has prefill or decode pools only; a pair is needed")
    labels = [dns_label(pool.name) for pool in plan.pools]
    if len(set(labels)) < len(labels):
        raise InputError("two pools have the same name; give pools different names")
    quantization: Literal["fp8"] | None = None
    if checkpoint is None:
        checkpoint, fits = find_checkpoint(plan.model, plan.weights_dtype)
        if (
            not fits
            and plan.weights_dtype == "fp8"
            and load_model(plan.model).native_dtype == "bf16"
        ):
            quantization = "fp8"
        elif not fits:
            notes.append(
                f"no checkpoint of {plan.model} in {plan.weights_dtype} is known, so the export "
                f"names {checkpoint}; give one with --checkpoint"
            )
    return Release(name, model_label(plan.model), checkpoint, quantization, plan, tuple(notes))


def pair(release: Release, target: str) -> tuple[PlannedPool, PlannedPool]:
    """Return the decode and the prefill pool, where a target takes one of each.

    Raises:
        InputError: there are more, or mixed pools beside them.
    """
    decode, prefill = release.of_role("decode"), release.of_role("prefill")
    if len(decode) != 1 or len(prefill) != 1 or release.of_role("mixed"):
        raise InputError(
            f"{target} takes one prefill and one decode pool of a model; the plan has "
            f"{len(prefill)} prefill, {len(decode)} decode and {len(release.of_role('mixed'))} "
            "mixed pools (--to vllm and --to dynamo take any)"
        )
    return decode[0], prefill[0]


def find_checkpoint(model: str, dtype: str) -> tuple[str, bool]:
    """Return a checkpoint of a model and whether its weights are of a format.

    A Hugging Face id is taken as it is, a ``config.json`` stands for its folder; of a catalog
    model's ids one in the format is preferred, then one tuned on instructions.
    """
    path = Path(model).expanduser()
    if path.suffix == ".json" or path.exists():
        return str(path.parent if path.suffix == ".json" else path), True
    native = load_model(model).native_dtype
    if "/" in model:
        return model, _format(model, native) == dtype
    ids = [name for name in aliases("models").get(_catalog_name(model), ()) if "/" in name]
    ids.sort(key=lambda name: (_format(name, native) != dtype, _format(name, native) != native,
                               not re.search(r"-(instruct|chat|it)\b", name, re.IGNORECASE)))  # fmt: skip
    return (ids[0], _format(ids[0], native) == dtype) if ids else (model, False)


def _format(checkpoint: str, native: str) -> str:
    """Return the format of a checkpoint's weights, by its name."""
    words = checkpoint.lower().replace("_", "-").split("-")
    for dtype, marks in _DTYPE_WORDS.items():
        if any(mark in words for mark in marks):
            return dtype
    return native


def _catalog_name(model: str) -> str:
    wanted = load_model(model).name
    return wanted if wanted in model_names() else model


def model_label(model: str) -> str:
    """Return the name by which clients ask for a model: of a path, the folder's name."""
    path = Path(model)
    if path.suffix == ".json":
        return path.absolute().parent.name
    return path.name if path.exists() else model


def dns_label(text: str) -> str:
    """Return a name as Kubernetes takes it: lower case, digits and hyphens, 50 at most."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].strip("-")
    return label if label and label[0].isalpha() else f"m-{label}".strip("-")


def _distinct(names: list[str]) -> list[str]:
    return [
        name if names.count(name) == 1 else f"{name}-{names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    ]
