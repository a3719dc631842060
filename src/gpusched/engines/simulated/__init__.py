"""An engine that answers as a timing model and a batching policy say, in real time, without a model."""

from gpusched.engines.simulated.child import SimulatedServer, affine_timing, start_simulated
from gpusched.engines.simulated.faults import Faults
from gpusched.engines.simulated.iterations import IterationEngine
from gpusched.engines.simulated.server import SimulatedEngine

__all__ = [
    "Faults",
    "IterationEngine",
    "SimulatedEngine",
    "SimulatedServer",
    "affine_timing",
    "start_simulated",
]
