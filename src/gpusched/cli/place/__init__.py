"""``gpusched place``: what of a model goes on which machine."""

import typer

from gpusched.cli.place import blocks, experts, layers

app = typer.Typer(
    help="Place layers, blocks or experts of a model on machines.", no_args_is_help=True
)
app.command("layers")(layers.layers)
app.command("blocks")(blocks.blocks)
app.command("experts")(experts.experts)
