"""Pipelines over unequal nodes that each hold some of a model's layers: a compiled simulator."""

from gpusched.sim.pipelines.build import OfflineFeed
from gpusched.sim.pipelines.limits import BatchLimits, measured_limits
from gpusched.sim.pipelines.result import PipelineResult, summarize
from gpusched.sim.pipelines.simulate import NodeChange, simulate_pipelines

__all__ = [
    "BatchLimits",
    "NodeChange",
    "OfflineFeed",
    "PipelineResult",
    "measured_limits",
    "simulate_pipelines",
    "summarize",
]
