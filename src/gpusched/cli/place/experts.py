"""``gpusched place experts``: which server and GPU holds which expert."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpusched.moe.answer import Answer


def experts(
    spec: Annotated[Path, typer.Argument(help="YAML or JSON file with the question.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the placement: .json, .csv or .parquet."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a self-contained HTML report.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of generated loads and removed links.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Place a model's experts on servers so that tokens make the fewest hops.

    Example: gpusched place experts examples/experts.yaml -o experts.json --report experts.html

    The optimum is exact; round-robin, greedy and EPLB stand beside it, with the load of the busiest
    GPU.
    """
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.moe.answer import answer_experts
    from gpusched.moe.spec import read_expert_spec
    from gpusched.report.expert_placement import render_answer

    if output is not None and output.suffix not in (".json", ".csv", ".parquet"):
        raise InputError(f"--output: must end in .json, .csv or .parquet, got {output}")
    progress = Progress()
    try:
        answer = answer_experts(read_expert_spec(spec), seed, progress)
    finally:
        progress.done()
    try:
        if output is not None:
            _write(answer, output)
        if report is not None:
            report.write_text(render_answer(answer), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write ({error.filename or output}: {error.strerror})") from None
    if as_json:
        document = answer.document()
        if output is not None:
            for key in ("expert_of", "servers", "gpu"):
                document.pop(key)
        print(json.dumps(document, allow_nan=False))
    else:
        _show(answer)


def _show(answer: "Answer") -> None:
    from rich.table import Table

    from gpusched.moe.answer import answer_lines
    from gpusched.report.tables import terminal

    console = terminal()
    for line in answer_lines(answer):
        console.print(line)
    table = Table()
    table.add_column("placement")
    for heading in ("hops per token", "per activation", "busiest GPU / mean", "worst layer"):
        table.add_column(heading, justify="right")
    for c in answer.candidates:
        table.add_row(
            c.name, f"{c.placement.hops:.1f}", f"{c.placement.hops_per_activation:.3f}",
            f"{c.load_ratio:.2f}", f"{c.worst_load_ratio:.2f}",
        )  # fmt: skip
    console.print(table)


def _write(answer: "Answer", path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(answer.document(), allow_nan=False) + "\n", encoding="utf-8")
        return
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet

    p = answer.best.placement
    layers, items = p.at.shape
    table = pa.table(
        {
            "layer": np.repeat(np.arange(layers), items),
            "expert": p.expert_of.ravel(),
            "server": p.at.ravel(),
            "gpu": answer.best.gpu.ravel(),
            "activations_per_token": p.weight.ravel(),
        }
    )
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
