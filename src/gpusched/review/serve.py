"""The built site on the loopback interface."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gpusched.errors import InputError


class _Quiet(SimpleHTTPRequestHandler):
    """Files of one folder, without a line on stderr for each."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def list_directory(self, path: Any) -> None:
        """Refuse to list."""
        self.send_error(404)

    def end_headers(self) -> None:
        """Add what keeps a page from reaching out or being kept."""
        self.send_header(
            "Content-Security-Policy",
            "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:",
        )
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def site_server(site: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of a site on 127.0.0.1, listening but not yet serving.

    Raises:
        InputError: there is no site, or the port is taken.
    """
    if not (site / "index.html").is_file():
        raise InputError(
            f"{site}: no site here; make it with 'gpusched review build --site {site}'"
        )
    handler = partial(_Quiet, directory=str(site))
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise InputError(f"--port {port}: cannot listen ({error.strerror})") from None
