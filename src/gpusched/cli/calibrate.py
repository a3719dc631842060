"""``gpusched calibrate``: measure a live engine and fit its timing model."""

import json
from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    url: Annotated[str, typer.Argument(metavar="URL", help="The engine, http://HOST:PORT.")],
    model: Annotated[
        str | None, typer.Option(help="Model to ask for, where the engine serves several.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the timing file here.")
    ] = None,
    budget_s: Annotated[
        float, typer.Option(min=5.0, max=86_400.0, help="Seconds for the experiment.")
    ] = 60.0,
    validate: Annotated[
        bool, typer.Option(help="Send other traffic afterwards and compare with its simulation.")
    ] = True,
    load: Annotated[
        float, typer.Option(min=0.05, max=1.5, help="Share of capacity of that traffic.")
    ] = 0.6,
    largest_batch: Annotated[
        int, typer.Option(min=1, max=4096, help="Requests at a time at most.")
    ] = 32,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=64, help="Longest prompt; what the engine takes if not given.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="The engine's limit, if known.")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="The engine's token budget, if known.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=1024, help="GPUs of the engine.")] = 1,
    machine: Annotated[
        str | None, typer.Option(help="Where it runs, in words, for the record.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that the engine asks for.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of prompts and of the order.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure a live engine: how long its iterations take, with confidence, as a timing file.

    Example: gpusched calibrate http://127.0.0.1:8101 -o timing.toml --budget-s 60

    Nobody else may use the engine meanwhile. Name the file as timing in a spec or plan.
    """
    from gpusched.calibration.calibrate import Settings
    from gpusched.calibration.calibrate import calibrate as measure
    from gpusched.calibration.client import HttpEngine
    from gpusched.calibration.facts import check_idle, find_facts
    from gpusched.calibration.validate import validate as close_loop
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.report.calibration import document, show_calibrated, show_validation
    from gpusched.timing.measured import measured_toml

    key = None
    if api_key_file is not None:
        try:
            key = api_key_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file: {api_key_file} cannot be read ({error})") from None
    if output is not None and not output.absolute().parent.is_dir():
        raise InputError(f"--output: no folder {output.absolute().parent}")
    progress = Progress()
    engine = HttpEngine(url, api_key=key, seed=seed)
    figures, rate_rps = None, None
    try:
        facts = find_facts(engine, model)
        check_idle(engine)
        engine.find_habits()
        settings = Settings(
            seconds=budget_s, largest_batch=largest_batch, max_prompt_tokens=max_prompt_tokens,
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, gpus=gpus,
            machine=machine, seed=seed,
        )  # fmt: skip
        found = measure(engine, facts, settings, progress)
        if output is not None:
            try:
                output.write_text(measured_toml(found.measured), encoding="utf-8")
            except OSError as error:
                raise InputError(f"--output: cannot write {output} ({error.strerror})") from None
        if validate:
            figures, rate_rps = close_loop(
                engine, found.measured, load=load, seed=seed, progress=progress
            )
    finally:
        engine.close()
        progress.done()
    if as_json:
        print(json.dumps(document(found, figures, rate_rps), allow_nan=False))
        return
    show_calibrated(found)
    if figures is not None and rate_rps is not None:
        show_validation(figures, rate_rps)
