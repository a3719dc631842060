"""Cache sizes over time on the command line: ``gpusched scale`` with ``objective: carbon``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpusched.domain.spec import Spec


def asks_for_cache(spec: Path) -> bool:
    """Tell whether a document asks for the carbon of a prompt cache over time."""
    from gpusched.domain.document import load_document

    return load_document(spec).get("objective") == "carbon"


def scale_cache(
    spec: "Spec",
    *,
    output: Path | None = None,
    report: Path | None = None,
    seed: int = 0,
    as_json: bool = False,
) -> None:
    """Size the prompt cache hour by hour and print or write the answer."""
    from gpusched.cli.progress import Progress
    from gpusched.planning.cache_size.answer import answer_document, plan_cache
    from gpusched.report.cache import render_cache, show_cache

    progress = Progress()
    try:
        answer = plan_cache(spec, seed=seed, progress=progress)
    finally:
        progress.done()
    if output is not None:
        _write(output, json.dumps(answer_document(answer), indent=1, allow_nan=False) + "\n")
    if report is not None:
        _write(report, render_cache(answer))
    if as_json:
        print(json.dumps(answer_document(answer), allow_nan=False))
    else:
        show_cache(answer)


def _write(path: Path, text: str) -> None:
    from gpusched.errors import InputError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the answer ({error.strerror})") from None
