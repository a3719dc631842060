"""A plan in the words of those who run engines: vLLM command lines, Dynamo, llm-d, Ray Serve, KServe.

Field names are the targets' own; ``docs/export.md`` names the versions they were read from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gpusched.domain.plan import Plan
from gpusched.errors import InputError, unknown_name
from gpusched.integrations.export.dynamo import graph_deployments
from gpusched.integrations.export.kserve import inference_services
from gpusched.integrations.export.llm_d import helm_values
from gpusched.integrations.export.ray_serve import serve_config
from gpusched.integrations.export.releases import Document, Release, releases
from gpusched.integrations.export.vllm import shell_script

TARGETS: Mapping[str, Callable[[tuple[Release, ...], str | None], list[Document]]] = (
    MappingProxyType(
        {
            "vllm": shell_script,
            "dynamo": graph_deployments,
            "llm-d": helm_values,
            "ray-serve": serve_config,
            "kserve": inference_services,
        }
    )
)
"""What turns releases into documents for each target; the second argument is a container image."""


@dataclass(frozen=True, slots=True)
class Export:
    """A plan's documents for one target."""

    documents: tuple[Document, ...]
    notes: tuple[str, ...]
    """What the target cannot say, or the user must see to."""
    separate: bool
    """Whether each document must be a file of its own."""


def export(
    plan: Plan,
    target: str,
    *,
    checkpoints: Mapping[str, str] = MappingProxyType({}),
    image: str | None = None,
) -> Export:
    """Return a plan's documents for a target.

    Args:
        plan: of pools, or a cascade of pools.
        target: one of ``TARGETS``.
        checkpoints: Hugging Face id or folder of weights by the plan's name of a model.
        image: container image of the engines, where the target names one.

    Raises:
        InputError: no such target, or a plan that the target cannot express; says why.
    """
    if target not in TARGETS:
        raise InputError("--to: " + unknown_name("target", target, TARGETS))
    if image is not None and target in ("vllm", "ray-serve"):
        raise InputError(f"--image: {target} starts engines without a container; leave it out")
    parts = releases(plan, checkpoints)
    documents = TARGETS[target](parts, image)
    gathered = [part.notes for part in parts] + [document.notes for document in documents]
    notes = dict.fromkeys(note for notes in gathered for note in notes)
    return Export(tuple(documents), tuple(notes), separate=target == "llm-d" and len(documents) > 1)
