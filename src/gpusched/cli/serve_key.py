"""``gpusched serve-key``: make an API key for a gateway's client."""

import json
from typing import Annotated

import typer


def serve_key(
    name: Annotated[str, typer.Argument(help="Stands for the client in metrics and logs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make an API key and print it, once, with the lines that let it in.

    Only the key's SHA-256 goes into the plan; nobody can read the key out of it.

    Example: gpusched serve-key alice
    """
    from gpusched.domain.document import validate
    from gpusched.domain.gateway import ClientKey
    from gpusched.gateway.access.access import new_key

    key, digest = new_key()
    validate(ClientKey, {"name": name, "sha256": digest}, "serve-key")
    if as_json:
        print(json.dumps({"key": key, "name": name, "sha256": digest}))
        return
    typer.echo("give this to the client; it is not shown again:", err=True)
    print(key)
    typer.echo("and this to the plan, under gateway:", err=True)
    print(f"keys:\n  - name: {json.dumps(name)}\n    sha256: {digest}")
