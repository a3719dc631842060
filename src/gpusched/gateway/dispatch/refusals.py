"""Refusals of the dispatcher's, in OpenAI's terms."""

from collections.abc import Sequence

from gpusched.gateway.exchange import Refusal

MOST_NAMES = 16


def busy(retry_after_s: float) -> Refusal:
    """All engines have what they take, and as much waits."""
    return Refusal(
        429,
        "all engines are busy; try again later",
        "overloaded_error",
        code="overloaded",
        retry_after_s=retry_after_s,
    )


def unreachable(retry_after_s: float) -> Refusal:
    """No engine is in use."""
    return Refusal(
        503,
        "no engine can be reached; try again later",
        "overloaded_error",
        code="no_engine",
        retry_after_s=retry_after_s,
    )


def unknown_model(model: str, names: Sequence[str]) -> Refusal:
    """No engine serves a model of that name."""
    shown = model if len(model) <= 100 else model[:97] + "..."
    return Refusal(
        404,
        f"the model {shown!r} does not exist here; there is {', '.join(names[:MOST_NAMES])}",
        code="model_not_found",
        param="model",
    )
