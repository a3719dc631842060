"""Entry point of the ``gpusched`` command."""

import os
import sys

import typer

from gpusched.cli import (
    calibrate,
    calibrate_vote,
    catalog,
    compare,
    demo,
    engine,
    export,
    pick,
    place,
    plan,
    reproduce,
    review,
    scale,
    serve,
    serve_key,
    simulate,
    trace,
)
from gpusched.errors import GpuschedError

app = typer.Typer(
    name="gpusched",
    help="Decide how large language models are served: plan, simulate and cost a deployment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("simulate")(simulate.simulate)
app.command("compare")(compare.compare)
app.command("calibrate")(calibrate.calibrate)
app.command("calibrate-vote")(calibrate_vote.calibrate_vote)
app.command("reproduce")(reproduce.reproduce)
app.command("scale")(scale.scale)
app.command("export")(export.export)
app.command("pick")(pick.pick)
app.command("serve")(serve.serve)
app.command("serve-key")(serve_key.serve_key)
app.add_typer(engine.app, name="engine")
app.add_typer(place.app, name="place")
app.add_typer(review.app, name="review")
app.add_typer(trace.app, name="trace")
app.add_typer(catalog.app, name="catalog")


def main() -> None:
    """Run the command line; 0 done, 2 bad input, 3 infeasible, 1 our bug, 130 interrupted."""
    try:
        app(standalone_mode=True)
    except GpuschedError as error:
        word = "infeasible" if error.exit_code == 3 else "error"
        print(f"{word}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        print("error: out of memory; use a smaller trace (workload.limit)", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if os.environ.get("GPUSCHED_DEBUG"):
            raise
        print(
            f"this is a bug in gpusched: {type(error).__name__}: {error}\n"
            "run again with GPUSCHED_DEBUG=1 for the traceback and report it",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
