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
    """Empty where the experiment is our own."""
    module: str

    @property
    def citation(self) -> str:
        """Title, with the number of a paper."""
        return f"{self.title} (arXiv {self.arxiv})" if self.arxiv else self.title


PAPERS = {
    "mc-sf": Paper(
        "Online scheduling for LLM inference with KV cache constraints", "2502.07115", "mc_sf"
    ),
    "wait": Paper(
        "Optimizing LLM inference: fluid-guided online scheduling with memory constraints",
        "2504.11320",
        "wait",
    ),
    "ampd": Paper(
        "Efficient multi-round LLM inference over disaggregated serving", "2602.14516", "ampd"
    ),
    "sbs": Paper("Staggered batch scheduling", "2512.16134", "sbs"),
    "cascadia": Paper(
        "Cascadia: an efficient cascade serving system for large language models",
        "2506.04203",
        "cascadia",
    ),
    "gate-and-route": Paper(
        "Joint admission and routing of prefill and decode (Gate-and-Route)",
        "2602.02987",
        "gate_and_route",
    ),
    "bprr": Paper("Block placement and request routing for PETALS", "2512.21884", "bprr"),
    "experts": Paper("Topology-aware placement of experts", "2508.09229", "experts"),
    "findep": Paper(
        "FinDEP: fine-grained overlap of disaggregated experts", "2512.21487", "findep"
    ),
    "probe": Paper("PROBE: real-time balancing of expert parallelism", "2602.00509", "probe"),
    "best-of-infinity": Paper("Best-of-infinity", "2509.21091", "best_of_infinity"),
    "safety-game": Paper(
        "Safety Game: inference-time alignment of black-box LLMs via constrained optimization",
        "2510.09330",
        "safety_game",
    ),
    "rmod": Paper("Robust multi-objective decoding", "2503.08796", "rmod"),
    "pama": Paper("Pareto multi-objective alignment", "2508.07768", "pama"),
    "sageserve": Paper(
        "SageServe: forecast-aware auto-scaling for LLM serving", "2502.14617", "sageserve"
    ),
    "greencache": Paper(
        "Cache your prompt when it's green: carbon-aware caching for LLM serving",
        "2505.23970",
        "greencache",
    ),
    "real-engine": Paper("A real engine, predicted and measured", "", "real_engine"),
    "helix": Paper(
        "Helix: serving over heterogeneous GPUs and network via max-flow", "2406.01566", "helix"
    ),
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
