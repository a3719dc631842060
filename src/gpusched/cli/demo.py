"""``gpusched demo``: the embedded example, end to end."""

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer


def demo(
    directory: Annotated[
        Path, typer.Option("--directory", "-d", help="Where to write spec, plan and report.")
    ] = Path(),
    seed: Annotated[int, typer.Option(help="Seed of the generated traffic.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan an example deployment; write spec.yaml, plan.yaml, plan.json and report.html.

    Example: gpusched demo --directory out
    """
    from gpusched.cli.plan import answer_of, write_report
    from gpusched.domain.document import parse_document
    from gpusched.domain.plan import plan_document, write_plan
    from gpusched.domain.spec import spec_from
    from gpusched.errors import InputError

    text = resources.files("gpusched.cli").joinpath("demo.yaml").read_text("utf-8")
    answer = answer_of(spec_from(parse_document(text, "demo.yaml"), origin="demo.yaml"), seed)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "spec.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{directory}: cannot write here ({error.strerror})") from None
    for name in ("plan.yaml", "plan.json"):
        write_plan(answer.plan, directory / name)
    write_report(answer.plan, answer.result, directory / "report.html")
    if as_json:
        print(json.dumps(plan_document(answer.plan), allow_nan=False))
        return
    from gpusched.report.tables import show_plan

    print(text)
    show_plan(answer.plan)
    print(f"\nwritten to {directory}/: spec.yaml plan.yaml plan.json report.html")
