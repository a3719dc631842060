"""``gpusched trace``: look at, convert and make traces."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gpusched.traces.trace import Trace

app = typer.Typer(help="Look at, convert and make traces.", no_args_is_help=True)
Rate = Annotated[
    float | None, typer.Option(help="Requests a second: of a profile, or of lengths-only files.")
]
Duration = Annotated[float, typer.Option("--duration", min=1e-3, max=1e9, help="Seconds.")]
Arrivals = Annotated[str, typer.Option(help="poisson, gamma, mmpp, diurnal or weekly.")]
Cv = Annotated[float, typer.Option(min=1e-3, max=100, help="Variation of gamma gaps.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn.")]


@app.command("describe")
def describe(
    source: Annotated[str, typer.Argument(help="A trace file, or a profile such as chat.")],
    against: Annotated[str | None, typer.Option(help="Compare lengths with a profile.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a plot as a web page.")] = None,
    rate: Rate = None,
    duration_s: Duration = 3600.0,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Describe a trace: rates, burstiness, lengths, sessions, prefix sharing.

    Example: gpusched trace describe conv.csv --plot conv.html
    """
    from gpusched.report.tables import show_record
    from gpusched.traces import describe as statistics
    from gpusched.traces.profiles import load_profile

    trace = _read(source, rate, duration_s, "poisson", 2.0, seed)
    record = statistics.describe(trace)
    if against is not None:
        record["against"] = {against: statistics.against(trace, load_profile(against))}
    if plot is not None:
        from gpusched.report.trace_plot import plot_trace

        _write(plot, plot_trace(trace))
    if as_json:
        print(json.dumps(record, allow_nan=False))
    else:
        show_record(record)


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="A trace file in any format.")],
    target: Annotated[Path, typer.Argument(help="Where to write: .parquet or .csv.")],
    rate: Rate = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep the first requests.")] = None,
    seed: Seed = 0,
) -> None:
    """Convert a trace to gpusched's own parquet or CSV.

    Example: gpusched trace convert mooncake.jsonl mooncake.parquet
    """
    from gpusched.traces.read import read_trace
    from gpusched.traces.write import write_trace

    trace = read_trace(source, rate_rps=rate, limit=limit, seed=seed)
    write_trace(trace, target)
    for note in trace.notes:
        typer.echo(note, err=True)
    typer.echo(f"{len(trace)} requests written to {target}", err=True)


@app.command("generate")
def generate(
    profile: Annotated[
        str,
        typer.Argument(
            help="chat, code, agent, tool-agent, assistant, rag, documents, summarize, reason."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Where to write: .parquet or .csv.")],
    rate: Rate = 10.0,
    duration_s: Duration = 3600.0,
    arrivals: Arrivals = "poisson",
    cv: Cv = 2.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Keep the first requests.")] = None,
    seed: Seed = 0,
) -> None:
    """Make a trace with the lengths of a profile.

    Example: gpusched trace generate chat chat.parquet --rate 12 --arrivals diurnal --duration 86400
    """
    from gpusched.traces.write import write_trace

    trace = _read(profile, rate, duration_s, arrivals, cv, seed, limit, file=False)
    write_trace(trace, target)
    typer.echo(f"{len(trace)} requests written to {target}", err=True)


def _read(
    source: str,
    rate: float | None,
    duration_s: float,
    arrivals: str,
    cv: float,
    seed: int,
    limit: int | None = None,
    *,
    file: bool = True,
) -> "Trace":
    """Return a trace from a file, or generated from a profile."""
    from gpusched.errors import InputError
    from gpusched.traces.generate import generate as make
    from gpusched.traces.profiles import profiles
    from gpusched.traces.read import read_trace

    if rate is not None and not 0 < rate <= 1e7:
        raise InputError(f"--rate must lie between 0 and 1e7 requests a second, got {rate:g}")
    if file and source not in profiles():
        return read_trace(source, rate_rps=rate, seed=seed)
    return make(source, rate or 10.0, duration_s, arrivals=arrivals, cv=cv, seed=seed, limit=limit)


def _write(path: Path, text: str) -> None:
    from gpusched.errors import InputError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot write the plot ({error.strerror})") from None
