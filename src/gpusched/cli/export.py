"""``gpusched export``: a plan in the words of those who run engines."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan of pools or a cascade.")],
    to: Annotated[
        str, typer.Option(help="vllm, dynamo, llm-d, ray-serve or kserve.", metavar="TARGET")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File; a name without a suffix is a folder, of one file a document.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights: a Hugging Face id or folder, or MODEL=ID of one model of a cascade."
        ),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image of the engines.")] = None,
) -> None:
    """Write a plan as vllm command lines or as a peer's deployment.

    Example: gpusched export plan.yaml --to vllm -o engines.sh
    """
    from gpusched.domain.plan import read_plan
    from gpusched.integrations.export import export as documents_of

    found = read_plan(plan)
    result = documents_of(
        found, to, checkpoints=_checkpoints(checkpoint or [], found.model), image=image
    )
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if output is None:
        print(_joined([doc.text for doc in result.documents]), end="")
    elif output.is_dir() or not output.suffix:
        suffix = ".sh" if to == "vllm" else ".yaml"
        for document in result.documents:
            _write(output / f"{document.name}{suffix}", document.text)
    else:
        if result.separate:
            from gpusched.errors import InputError

            raise InputError(
                f"--output: helm reads values of one release from a file, and the plan gives "
                f"{len(result.documents)}; name a folder: -o {output.stem}"
            )
        _write(output, _joined([doc.text for doc in result.documents]))


def _joined(texts: list[str]) -> str:
    return "---\n".join(texts)


def _checkpoints(given: list[str], model: str) -> dict[str, str]:
    """Return ids by model; one without a model's name is of the plan's own."""
    pairs = {}
    for text in given:
        name, equals, value = text.partition("=")
        pairs[name if equals else model] = value if equals else text
    return pairs


def _write(path: Path, text: str) -> None:
    from gpusched.errors import InputError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the file ({error.strerror})") from None
