"""``gpusched catalog``: what is known of GPUs and models."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

app = typer.Typer(help="What is known of GPUs and models, with sources.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command("gpus")
def gpus(
    name: Annotated[str | None, typer.Argument(help="One GPU type; all if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """List GPU types.

    Example: gpusched catalog gpus h100_sxm
    """
    from gpusched.domain.catalog import aliases, gpu_names, load_gpu
    from gpusched.report.tables import show_record, show_rows

    chosen = [load_gpu(name)] if name else [load_gpu(known) for known in gpu_names()]
    records = [{**asdict(gpu), "aliases": list(aliases("gpus")[gpu.name])} for gpu in chosen]
    if as_json:
        print(json.dumps(records[0] if name else records))
    elif name:
        show_record(records[0])
    else:
        show_rows(
            ("GPU", "bf16 TF", "fp8 TF", "memory GB", "GB/s", "TDP W", "$/h"),
            [
                (
                    gpu.name,
                    f"{gpu.flops['bf16'] / 1e12:g}",
                    f"{gpu.flops['fp8'] / 1e12:g}" if "fp8" in gpu.flops else "-",
                    f"{gpu.memory_bytes / 1e9:g}",
                    f"{gpu.memory_bytes_per_s / 1e9:g}",
                    f"{gpu.tdp_w:g}",
                    f"{gpu.usd_per_hour:g}",
                )
                for gpu in chosen
            ],
        )


@app.command("models")
def models(
    name: Annotated[
        str | None, typer.Argument(help="One model, or the path of a config.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models.

    Example: gpusched catalog models deepseek-v3
    """
    from gpusched.domain.catalog import aliases, load_model, model_names
    from gpusched.report.tables import show_record, show_rows

    chosen = [load_model(name)] if name else [load_model(known) for known in model_names()]
    records = [
        {
            **asdict(model),
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "kv_bytes_per_token": model.kv_bytes_per_token(),
            "aliases": list(aliases("models").get(model.name, ())),
        }
        for model in chosen
    ]
    if as_json:
        print(json.dumps(records[0] if name else records))
    elif name:
        show_record(records[0])
    else:
        show_rows(
            ("model", "layers", "hidden", "parameters B", "active B", "KV KiB/token", "format"),
            [
                (
                    m.name,
                    f"{m.layers}",
                    f"{m.hidden}",
                    f"{m.parameters / 1e9:.2f}",
                    f"{m.active_parameters / 1e9:.2f}",
                    f"{m.kv_bytes_per_token() / 1024:g}",
                    m.native_dtype,
                )
                for m in chosen
            ],
        )
