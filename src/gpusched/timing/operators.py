"""Time of the operators of one transformer layer: smooth rooflines with fitted efficiencies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.gpu import Gpu
from gpusched.timing.coefficients import Coefficients

Floats = NDArray[np.float64]
ACTIVATION_BYTES = 2.0


@dataclass(frozen=True, slots=True)
class Gemm:
    """Matrix products in one number format on one GPU."""

    flops: float
    bytes_per_s: float
    weight_bytes: float
    fixed_s: float
    compute: float
    memory: float
    norm: float

    def time_s(self, m: Floats, n: float, k: float) -> Floats:
        """Return the time of an ``m x k`` by ``k x n`` product.

        The norm of compute time and memory time joins the two sides of the roofline smoothly; as
        ``norm`` grows it becomes their maximum.
        """
        compute_s = 2.0 * m * n * k / (self.compute * self.flops)
        moved = self.weight_bytes * (n * k + m * k) + ACTIVATION_BYTES * m * n
        memory_s = moved / (self.memory * self.bytes_per_s)
        return self.fixed_s + p_norm(compute_s, memory_s, self.norm)


def p_norm(a: Floats, b: Floats, p: float) -> Floats:
    """Return ``(a^p + b^p)^(1/p)`` without overflow; the maximum for large ``p``."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    if p > 64:
        return high
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    return np.asarray(high * (1.0 + ratio**p) ** (1.0 / p))


def gemm_for(gpu: Gpu, weights_dtype: str, weight_bytes: float, c: Coefficients) -> Gemm:
    """Return the quantised products of an engine."""
    return Gemm(
        arithmetic_flops(gpu, weights_dtype),
        gpu.memory_bytes_per_s,
        weight_bytes,
        c.gemm_fixed_s,
        c.gemm_compute,
        c.gemm_memory,
        c.gemm_norm,
    )


def bf16_gemm_for(gpu: Gpu, c: Coefficients) -> Gemm:
    """Return the products that stay in bf16, such as the output projection."""
    return Gemm(gpu.flops["bf16"], gpu.memory_bytes_per_s, 2.0, *c.head_gemm)


def arithmetic_flops(gpu: Gpu, weights_dtype: str) -> float:
    """Return the peak rate at which weights of a format are multiplied.

    A format the GPU cannot multiply is unpacked to the next wider one it can.
    """
    wider = {
        "nvfp4": ("fp4", "fp8", "bf16"),
        "mxfp4": ("fp4", "bf16"),
        "fp8": ("fp8", "bf16"),
        "int8": ("int8", "bf16"),
    }
    ladder = wider.get(weights_dtype, ("bf16",))
    return next(gpu.flops[name] for name in ladder if name in gpu.flops)


def experts_read(experts: float, top_k: float, tokens: Floats) -> Floats:
    """Return how many of ``experts`` distinct ones ``tokens`` uniform choices of ``top_k`` hit."""
    return np.asarray(experts * (1.0 - (1.0 - top_k / experts) ** tokens))
