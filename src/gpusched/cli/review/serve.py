"""``gpusched review serve``."""

from typing import Annotated

import typer

from gpusched.cli.review.options import SITE, Site


def serve(
    site: Site = SITE,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
) -> None:
    """Show the built site on this machine, until interrupted.

    Example: gpusched review serve --port 8080
    """
    from gpusched.review.serve import site_server

    with site_server(site, port) as server:
        typer.echo(f"http://127.0.0.1:{server.server_address[1]}/", err=True)
        server.serve_forever()
