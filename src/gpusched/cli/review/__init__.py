"""``gpusched review``: the living review of the literature."""

import typer

from gpusched.cli.review import build, decide, fronts, serve, summaries, update, verdicts

app = typer.Typer(
    help="Keep a review of the literature: new papers, fronts, and reruns of their claims.",
    no_args_is_help=True,
)
app.command("update")(update.update)
app.command("summaries")(summaries.summaries)
app.command("accept")(decide.accept)
app.command("reject")(decide.reject)
app.command("fronts")(fronts.fronts)
app.command("verdicts")(verdicts.verdicts)
app.command("build")(build.build)
app.command("serve")(serve.serve)
