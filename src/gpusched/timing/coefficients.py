"""Efficiencies of an engine on a GPU: fitted where measured, physical defaults elsewhere."""

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from gpusched.domain.gpu import Gpu
from gpusched.errors import InputError, unknown_name


@dataclass(frozen=True, slots=True)
class Calibration:
    """What measurements a set of coefficients was fitted to, and how well it predicts others."""

    rows: int
    tpot_error: float
    """Mean absolute relative error on configurations kept out of the fit; without any, twice that
    of the fitted ones."""
    ttft_error: float
    max_tp: int
    max_batch: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Efficiencies lie in (0, 1]; ``*_fixed_s`` are kernel launch and set-up times."""

    gemm_fixed_s: float
    gemm_compute: float
    gemm_memory: float
    gemm_norm: float
    """Exponent of the smooth roofline."""
    head_gemm: tuple[float, float, float, float]
    """The same four figures for bf16: output projection and unquantised attention."""
    decode_attention_fixed_s: float
    decode_attention_memory: float
    prefill_attention_fixed_s: float
    prefill_attention_compute: float
    moe_fixed_s: float
    moe_compute: float
    moe_memory: float
    moe_overlap: float
    """Share of the shorter of compute and weight reading that the longer does not hide."""
    elementwise_fixed_s: float
    elementwise_memory: float
    link_memory: float
    """Share of a link's bandwidth that transfers reach."""
    link_latency_s: float
    all_reduce_latency_s: tuple[float, float, float]
    """For 2, 4 and 8 GPUs of one node."""
    all_reduce_bytes_per_s: tuple[float, float, float]
    host_s: float = 0.0
    """Time of the scheduler and launch per iteration that the GPU does not hide."""
    sequence_s: float = 0.0
    """Host time per sequence of the batch."""
    layer_s: float = 0.0
    """Extra time per layer."""
    tp_layer_s: float = 0.0
    """Extra time per layer for each doubling of the tensor-parallel group."""
    ep_imbalance: float = 0.0
    """Growth of the busiest rank's expert work with each doubling of the expert-parallel group."""
    prefill_share: float = 1.0
    """Cost of prompt tokens inside running batches, over that of the same tokens on their own."""
    admission_s: float = 0.008
    """HTTP, tokenizer and first scheduling of a request."""
    queue_log: float = 0.125
    """Growth of the wait before prefill with log2 of the concurrency, in prefill times."""
    queue_linear: float = 0.0
    """The same, linear in the concurrency: what is left of a burst at the start."""
    queue_load: float = 0.0
    """The same, linear in the concurrency and in the share of time that goes into prefill."""
    calibration: Calibration | None = None


TUNABLE = tuple(
    f.name
    for f in fields(Coefficients)
    if f.name not in ("head_gemm", "calibration") and not f.name.startswith("all_reduce")
)


def coefficients_for(
    gpu: Gpu,
    weights_dtype: str,
    framework: str,
    *,
    kind: str,
    disaggregated: bool = False,
    fitted: bool = True,
    file: str | Path | None = None,
) -> Coefficients:
    """Return the coefficients of an engine: the nearest fit, else physical defaults.

    ``kind`` of model: ``dense``, ``moe``, ``mla`` (latent attention), ``sparse`` (latent, sparse)
    or ``linear`` (linear attention).
    ``file`` names a TOML file with one's own figures, which override the built-in ones.

    Raises:
        InputError: ``file`` cannot be read, or holds an unknown or impossible figure.
    """
    tables = _tables()
    family = next((f for f, gpus in tables["families"].items() if gpu.name in gpus), "hopper")
    arithmetic = "fp8" if weights_dtype != "bf16" and "fp8" in gpu.flops else "bf16"
    if weights_dtype in ("int4", "mxfp4") and family != "blackwell":
        arithmetic = "bf16"
    gemms = tables["gemm"][family]
    gemm = gemms.get(arithmetic, gemms["bf16"])
    head = gemms["bf16"]
    reduce = tables["all_reduce"].get(gpu.name) or _all_reduce_guess(gpu)
    base = Coefficients(
        **tables["default"],
        **gemm,
        head_gemm=tuple(
            head[k] for k in ("gemm_fixed_s", "gemm_compute", "gemm_memory", "gemm_norm")
        ),
        all_reduce_latency_s=_triple(reduce["latency_us"], 1e-6),
        all_reduce_bytes_per_s=_triple(reduce["gb_per_s"], 1e9),
    )
    if fitted:
        base = _nearest_fit(
            base, gpu.name, family, framework, dtype_family(weights_dtype), kind, disaggregated
        )
    return base if file is None else _user_fit(base, Path(file))


def _triple(values: list[float], unit: float) -> tuple[float, float, float]:
    two, four, eight = values
    return two * unit, four * unit, eight * unit


def dtype_family(weights_dtype: str) -> str:
    """Return ``bf16``, ``fp8`` or ``fp4``: formats that engines serve by the same kernels."""
    return {"bf16": "bf16", "fp8": "fp8", "int8": "fp8"}.get(weights_dtype, "fp4")


def gpu_family(name: str) -> str:
    """Return the architecture a GPU type belongs to."""
    return next((f for f, gpus in _tables()["families"].items() if name in gpus), "hopper")


def _nearest_fit(
    base: Coefficients,
    gpu: str,
    family: str,
    framework: str,
    dtype: str,
    kind: str,
    disaggregated: bool,
) -> Coefficients:
    """Apply the fit that agrees in the most, the framework and the number format first.

    Fits to engines of another GPU family, or of neither this framework nor this format, say
    nothing about this one. Only a full match carries its calibration.
    """
    best, best_score = None, 0
    for fit in _tables().get("fit", ()):
        same = (
            (32, fit["framework"] == framework),
            (16, fit["dtype"] == dtype),
            (8, fit["kind"] == kind),
            (4, fit["gpu"] == gpu),
            (2, (fit["kind"] == "dense") == (kind == "dense")),
            (1, fit["disaggregated"] == disaggregated),
        )
        score = sum(points for points, holds in same if holds)
        related = gpu_family(fit["gpu"]) == family and score >= 16 and same[4][1]
        if related and score > best_score:
            best, best_score = fit, score
    if best is None:
        return base
    same_format = best["dtype"] == dtype
    values = {
        name: best[name]
        for name in TUNABLE
        if name in best and (same_format or not name.startswith(("gemm", "moe_c", "moe_m")))
    }
    exact = best_score == 63
    return replace(
        base, **values, calibration=Calibration(**best["calibration"]) if exact else None
    )


def _all_reduce_guess(gpu: Gpu) -> dict[str, list[float]]:
    """NVLink-class links reach about half their one-way rate; PCIe trees much less."""
    gb = gpu.link_bytes_per_s / 1e9
    shares = (0.74, 0.79, 1.0) if gb > 100 else (0.6, 0.3, 0.15)
    return {"latency_us": [6.0, 8.0, 10.0], "gb_per_s": [gb * share for share in shares]}


def _user_fit(base: Coefficients, file: Path) -> Coefficients:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot read the coefficients ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a TOML file ({error})") from None
    if "measured" in values:
        raise InputError(
            f"{file}: the [measured] table tells the times of a whole engine; parts of engines, such as "
            "layers or blocks on nodes, need a file of coefficients"
        )
    for name, value in values.items():
        if name not in TUNABLE:
            raise InputError(f"{file}: {unknown_name('coefficient', name, TUNABLE)}")
        share = not name.endswith("_s") and not name.startswith("queue") and name != "gemm_norm"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not value >= 0 or value > 1e3 or (share and not 0 < value <= 1):
            allowed = "between 0 and 1" if share else "a number that is not negative"
            raise InputError(f"{file}: {name} must be {allowed}, got {value!r}")
    figures: dict[str, Any] = {name: float(value) for name, value in values.items()}
    return replace(base, **figures, calibration=None)


@cache
def _tables() -> dict[str, Any]:
    package = resources.files("gpusched.timing")
    tables = tomllib.loads(package.joinpath("coefficients.toml").read_text("utf-8"))
    fits = package.joinpath("fits.toml")
    if fits.is_file():
        tables["fit"] = tomllib.loads(fits.read_text("utf-8")).get("fit", [])
    return tables
