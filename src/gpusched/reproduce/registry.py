"""The papers whose experiments can be rerun, by name."""

from dataclasses import dataclass
from importlib import import_module

from gpusched.errors import InputError, unknown_name
from gpusched.reproduce.claim import Reproduction, Setting


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper and the module whose ``run(setting)`` reruns its experiment."""

    title: str
    arxiv: str
    module: str


PAPERS = {
    "mc-sf": Paper(
        "Online scheduling for LLM inference with KV cache constraints", "2502.07115", "mc_sf"
    ),
    "wait": Paper(
        "Optimizing LLM inference: fluid-guided online scheduling with memory constraints",
        "2504.11320",
        "wait",
    ),
    "sbs": Paper("Staggered batch scheduling", "2512.16134", "sbs"),
    "gate-and-route": Paper(
        "Joint admission and routing of prefill and decode (Gate-and-Route)",
        "2602.02987",
        "gate_and_route",
    ),
    "experts": Paper("Topology-aware placement of experts", "2508.09229", "experts"),
    "findep": Paper(
        "FinDEP: fine-grained overlap of disaggregated experts", "2512.21487", "findep"
    ),
    "probe": Paper("PROBE: real-time balancing of expert parallelism", "2602.00509", "probe"),
}


def paper(name: str) -> Paper:
    """Return a paper by name.

    Raises:
        InputError: no such paper.
    """
    if name not in PAPERS:
        raise InputError(unknown_name("paper", name, PAPERS))
    return PAPERS[name]


def reproduce(name: str, setting: Setting) -> Reproduction:
    """Rerun a paper's experiment.

    Raises:
        InputError: no such paper.
    """
    module = import_module(f"gpusched.reproduce.{paper(name).module}")
    found: Reproduction = module.run(setting)
    return found
