"""``gpusched place``: what of a model goes on which machine."""

import typer

app = typer.Typer(
    help="Place layers, blocks or experts of a model on machines.", no_args_is_help=True
)

from gpusched.cli.place import blocks, experts, layers  # noqa: E402, F401

app.command("blocks")(blocks.place_blocks)
