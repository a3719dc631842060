"""A calibration on the terminal and as plain data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gpusched.report.tables import terminal

if TYPE_CHECKING:
    from gpusched.calibration.calibrate import Calibrated
    from gpusched.calibration.validate import Figure
    from gpusched.timing.measured import MeasuredEngine

UNITS = {
    "sequence_s": ("a sequence beside prompts", 1e3, "ms"),
    "context_s": ("a token of context", 1e9, "ns"),
    "pair_s": ("a query-key pair of prompts", 1e9, "ns"),
    "entry_s": ("a request outside iterations", 1e3, "ms"),
    "entry_token_s": ("a prompt token outside iterations", 1e6, "µs"),
}


def parts(measured: "MeasuredEngine") -> list[tuple[str, float, float, str]]:
    """Return what takes how long: words, time, half-width of the 95 % interval, unit."""
    figures = {**measured.iteration.model_dump(), **measured.request.model_dump()}
    found = []
    for table, sizes, words in (
        ("decode_s", "decode_batch", "decodes alone"),
        ("tokens_s", "tokens", "tokens with prompts"),
    ):
        half = measured.half_width.get(table, ())
        for i, (size, seconds) in enumerate(zip(figures[sizes], figures[table], strict=True)):
            width = half[i] if isinstance(half, tuple) and i < len(half) else 0.0
            found.append((f"{size:,} {words}", 1e3 * seconds, 1e3 * width, "ms"))
    for name, (words, scale, unit) in UNITS.items():
        value = measured.half_width.get(name, 0.0)
        width = value if isinstance(value, float) else 0.0
        found.append((words, scale * float(figures[name]), scale * width, unit))
    return found


def residuals(found: "Calibrated") -> list[dict[str, Any]]:
    """Return how far the fit is off by kind of iteration: rows, mean and largest tenth of errors."""
    predicted = found.fit.predict_s(found.rows)
    error = predicted / np.array([row.time_s for row in found.rows]) - 1.0
    groups: dict[tuple[int, str], list[int]] = {}
    for i, row in enumerate(found.rows):
        kind = (
            "decodes alone" if row.prompts == 0 else f"with prompts of {_range(row.prompt_tokens)}"
        )
        groups.setdefault((row.batch, kind), []).append(i)
    return [
        {
            "batch": batch,
            "iterations": kind,
            "rows": len(rows),
            "mean_ms": float(1e3 * np.mean([found.rows[i].time_s for i in rows])),
            "bias": float(error[rows].mean()),
            "p90_error": float(np.quantile(np.abs(error[rows]), 0.9)),
        }
        for (batch, kind), rows in sorted(
            groups.items(), key=lambda item: (item[0][1] != "decodes alone", item[0])
        )
    ]


def _range(tokens: int) -> str:
    low = 4 ** int(np.log(max(tokens, 1)) / np.log(4.0) + 1e-9)
    return f"{low} to {4 * low - 1}"


def document(
    found: "Calibrated", figures: Sequence["Figure"] | None, rate_rps: float | None
) -> dict[str, Any]:
    """Return a calibration as plain data."""
    values: dict[str, Any] = {
        "measured": found.measured.model_dump(mode="json", exclude_none=True),
        "seconds": round(found.seconds, 1),
        "stages": len(found.stages),
        "rows": len(found.rows),
        "residuals": residuals(found),
    }
    if figures is not None:
        values["validation"] = {
            "rate_rps": rate_rps,
            "figures": [
                {"name": f.name, "predicted": f.predicted, "measured": f.measured, "error": f.error}
                for f in figures
            ],
        }
    return values


def show_calibrated(found: "Calibrated", console: Console | None = None) -> None:
    """Print limits, figures with confidence, errors by kind of iteration."""
    console, m = console or terminal(), found.measured
    version = f" {m.engine_version}" if m.engine_version else ""
    console.print(
        f"[bold]{m.engine}{version}[/bold] serving {m.model}: "
        f"{_or_unknown(m.kv_tokens)} KV tokens in blocks of {_or_unknown(m.block_size)}, "
        f"{_or_unknown(m.max_num_seqs)} sequences, {_or_unknown(m.max_num_batched_tokens)} tokens an "
        "iteration"
    )
    table = Table(title="an iteration takes, and a request besides", title_justify="left")
    for heading in ("for", "time", "± (95 %)", ""):
        table.add_column(heading, justify="left" if heading in ("for", "") else "right")
    for words, value, half, unit in parts(m):
        table.add_row(words, f"{value:.4g}", f"{half:.2g}", unit)
    console.print(table)
    table = Table(title="errors of the fit", title_justify="left")
    for heading in ("batch", "iterations", "rows", "mean, ms", "bias", "p90 error"):
        table.add_column(heading, justify="left" if heading == "iterations" else "right")
    for row in residuals(found):
        table.add_row(
            str(row["batch"]), row["iterations"], str(row["rows"]), f"{row['mean_ms']:.2f}",
            f"{row['bias']:+.1%}", f"{row['p90_error']:.1%}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"  error on stages left out   {m.error.relative:.1%}\n"
        f"  condition of the design    {m.error.condition:.1f}\n"
        f"  experiment                 {len(found.stages)} stages, {len(found.rows)} rows, "
        f"{found.seconds:.0f} s"
    )


def show_validation(
    figures: Sequence["Figure"], rate_rps: float, console: Console | None = None
) -> None:
    """Print predicted beside measured figures."""
    table = Table(
        title=f"traffic not fitted to: Poisson, {rate_rps:.2f} requests/s", title_justify="left"
    )
    for heading in ("", "predicted", "measured", "error"):
        table.add_column(heading, justify="left" if not heading else "right")
    for figure in figures:
        scale, unit = (1.0, "") if "tokens/s" in figure.name else (1e3, " ms")
        table.add_row(
            figure.name, f"{figure.predicted * scale:,.1f}{unit}",
            f"{figure.measured * scale:,.1f}{unit}", f"{figure.error:+.1%}",
        )  # fmt: skip
    (console or terminal()).print(table)


def _or_unknown(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
