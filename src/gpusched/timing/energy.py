"""Power of GPUs at work and idle."""

from gpusched.domain.gpu import Gpu

PREFILL_LOAD, DECODE_LOAD = 0.95, 0.60
"""Share of the way from idle to rated power: prefill is bound by compute, decode by memory."""


def energy_j(
    gpu: Gpu, gpus: int, span_s: float, prefill_share: float, decode_share: float
) -> float:
    """Return the energy of ``gpus`` over ``span_s``, busy for the given shares of the time."""
    load = PREFILL_LOAD * prefill_share + DECODE_LOAD * decode_share
    return gpus * span_s * (gpu.idle_w + (gpu.tdp_w - gpu.idle_w) * load)
