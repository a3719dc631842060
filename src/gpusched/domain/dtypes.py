"""Number formats of weights and KV cache."""

WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "mxfp4": 0.53125,
    "nvfp4": 0.5625,
    "int4": 0.53125,
}
"""Bytes a weight, block scales included (MXFP4: 4.25 bits; NVFP4: 4.5 bits)."""

KV_BYTES = {"bf16": 2.0, "fp8": 1.0}
"""Bytes an element of the KV cache."""
