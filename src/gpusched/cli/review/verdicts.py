"""``gpusched review verdicts``: reruns of the papers, kept in the store."""

import json
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from gpusched.cli.review.options import STORE, AsJson, StoreFolder


def verdicts(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Papers to rerun and keep.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Rerun every paper.")] = False,
    keep: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Keep what 'gpusched reproduce --json' wrote to this file."),
    ] = None,
    traces: Annotated[Path | None, typer.Option(help="Folder of public traces.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes to use.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of all random draws.")] = 0,
    store: StoreFolder = STORE,
    as_json: AsJson = False,
) -> None:
    """Rerun papers and keep the verdicts; without a name, list those that are kept.

    Example: gpusched review verdicts wait sbs --traces traces
    """
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.reproduce.claim import Setting
    from gpusched.reproduce.registry import PAPERS, paper, reproduce
    from gpusched.review.store import load_store
    from gpusched.review.tables import show_reruns
    from gpusched.review.verdicts import load_reruns, parse_rerun, read_documents, save_rerun

    load_store(store)
    if traces is not None and not traces.is_dir():
        raise InputError(f"--traces: no folder {traces}")
    chosen = list(PAPERS) if everything else names or []
    for name in chosen:
        paper(name)
    for rerun in [rerun for path in keep or [] for rerun in read_documents(path)]:
        save_rerun(store, rerun)
    for name in chosen:
        progress = Progress()
        started = time.perf_counter()
        result = reproduce(name, Setting(seed, jobs, traces, progress))
        progress.done()
        values = {
            "name": name,
            "title": paper(name).title,
            "arxiv": paper(name).arxiv,
            "seconds": round(time.perf_counter() - started, 1),
            "run_on": date.today(),
            "verdict": result.verdict,
            "claims": [asdict(claim) for claim in result.claims],
        }
        save_rerun(store, parse_rerun(values, name))
    reruns = load_reruns(store)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "name": r.name,
                        "verdict": r.verdict,
                        "holding": r.holding,
                        "judged": r.judged,
                        "run_on": str(r.run_on) if r.run_on else None,
                        "seconds": r.seconds,
                    }
                    for r in reruns.values()
                ]
            )
        )
    else:
        show_reruns(reruns)
