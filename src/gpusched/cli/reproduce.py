"""``gpusched reproduce``: published figures beside ours."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpusched.reproduce.claim import Reproduction


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Papers to rerun.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Rerun every paper.")] = False,
    traces: Annotated[
        Path | None,
        typer.Option(help="Folder of public traces; generated ones stand in for them otherwise."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder to write a page with charts to, one a paper.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes to use.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of all random draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Rerun papers' experiments: each published figure, ours, and a verdict.

    Example: gpusched reproduce mc-sf --report out

    Without a name, the papers are listed.
    """
    from gpusched.cli.progress import Progress
    from gpusched.errors import InputError
    from gpusched.reproduce.claim import Setting
    from gpusched.reproduce.registry import PAPERS, paper
    from gpusched.reproduce.registry import reproduce as rerun
    from gpusched.reproduce.table import show_papers, show_reproduction

    chosen = list(PAPERS) if everything else names or []
    for name in chosen:
        paper(name)
    if traces is not None and not traces.is_dir():
        raise InputError(f"--traces: no folder {traces}")
    if not chosen:
        if as_json:
            print(
                json.dumps(
                    [{"name": n, "title": p.title, "arxiv": p.arxiv} for n, p in PAPERS.items()]
                )
            )
        else:
            show_papers(PAPERS)
        return
    documents: list[dict[str, Any]] = []
    for name in chosen:
        progress = Progress()
        started = time.perf_counter()
        setting = Setting(seed, jobs, traces, progress)
        result = rerun(name, setting)
        seconds = time.perf_counter() - started
        progress.done()
        if report is not None:
            _write_page(name, result, report)
        documents.append(
            {
                "name": name,
                "title": paper(name).title,
                "arxiv": paper(name).arxiv,
                "seconds": round(seconds, 1),
                "verdict": result.verdict,
                "claims": [asdict(claim) for claim in result.claims],
            }
        )
        if not as_json:
            show_reproduction(name, paper(name), result, seconds)
    if as_json:
        print(json.dumps(documents if everything or len(documents) > 1 else documents[0]))


def _write_page(name: str, result: "Reproduction", folder: Path) -> None:
    from gpusched.errors import InputError
    from gpusched.reproduce.page import render_reproduction
    from gpusched.reproduce.registry import paper

    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = render_reproduction(name, paper(name), result)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--report: cannot write to {folder} ({error.strerror})") from None
