"""How far a prediction stands from what the timing model was calibrated on."""

from dataclasses import dataclass

from gpusched.timing.disaggregated_experts import DisaggregatedExperts
from gpusched.timing.iteration import TimingModel, model_kind
from gpusched.timing.measured import MeasuredModel

UNCALIBRATED_ERROR = 0.35
"""Typical error of the physical defaults on engines nobody measured."""
KINDS = {
    "dense": "a dense model",
    "moe": "a mixture of experts",
    "mla": "latent attention",
    "sparse": "sparse attention",
    "linear": "linear attention",
}


@dataclass(frozen=True, slots=True)
class Assessment:
    """Expected relative error of times, and warnings where they lie outside what was measured."""

    relative_error: float
    warnings: tuple[str, ...]


def assess(
    timing: TimingModel | DisaggregatedExperts,
    framework: str,
    context_tokens: int,
    batch: int = 1,
) -> Assessment:
    """Return the error bar of a timing model at a context length and batch size."""
    if isinstance(timing, MeasuredModel):
        found = timing.found
        beyond_range = found.warnings(batch, 0, context_tokens)
        return Assessment(found.error.relative * 1.5 ** len(beyond_range), tuple(beyond_range))
    calibration = timing.coefficients.calibration
    kind = KINDS[model_kind(timing.model)]
    engine = f"{framework} on {timing.gpu.name} with {kind} in {timing.weights_dtype}"
    if calibration is None:
        warning = (
            f"{engine} was never measured: its times come from data sheets and the nearest engine "
            f"that was, and may be off by {UNCALIBRATED_ERROR:.0%}; calibrate before you buy"
        )
        return Assessment(UNCALIBRATED_ERROR, (warning,))
    warnings = []
    beyond = (
        ("tensor parallelism", timing.parallelism.tp, calibration.max_tp),
        ("contexts", context_tokens, calibration.max_context_tokens),
        ("batches", batch, calibration.max_batch),
    )
    error = calibration.tpot_error
    for what, value, known in beyond:
        if value > known:
            warnings.append(f"{engine}: {what} of {value} lie beyond the {known} measured")
            error *= 1.5
    if timing.parallelism.pp > 1:
        warnings.append(f"{engine}: pipeline parallelism was never measured")
        error *= 1.5
    return Assessment(error, tuple(warnings))
