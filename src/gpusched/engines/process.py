"""An engine as a child process: started, waited for until it answers, stopped."""

import atexit
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from gpusched.errors import GpuschedError

POLL_S = 0.05
STOP_S = 10.0
"""For a process to end by itself after SIGTERM."""
TAIL_LINES = 15


class EngineStartError(GpuschedError):
    """An engine did not come up; the message ends with errors and last lines of its log."""


class EngineServer:
    """A server that this process started, on loopback. Stop it, or use it as a context manager."""

    def __init__(
        self, name: str, command: Sequence[str], port: int, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.started_s = time.monotonic()
        self.healthy_after_s = float("nan")
        self._folder = tempfile.TemporaryDirectory(prefix="gpusched-engine-")
        self.log = Path(self._folder.name) / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True, cwd=self._folder.name,
            )  # fmt: skip
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def is_healthy(self) -> bool:
        """Whether ``/health`` answers with 200."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, limit_s: float) -> Self:
        """Return when the server answers.

        Raises:
            EngineStartError: it ended, or does not answer within the limit.
        """
        while not self.is_healthy():
            code = self.process.poll()
            if code is not None:
                raise self._failure(f"ended with code {code} before it answered")
            if time.monotonic() - self.started_s > limit_s:
                raise self._failure(f"did not answer within {limit_s:g} s")
            time.sleep(POLL_S)
        self.healthy_after_s = time.monotonic() - self.started_s
        return self

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of the log."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """End the server and what it started."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        self._kill_group()
        self.process.wait()
        atexit.unregister(self.stop)
        self._folder.cleanup()

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        self._kill_group()
        self.process.wait()

    def _kill_group(self) -> None:
        """The session is the server's own: whoever is in it, it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _failure(self, what: str) -> EngineStartError:
        lines = self.tail(5000).splitlines()
        causes = dict.fromkeys(line for line in lines[:-TAIL_LINES] if "Error: " in line)
        self.stop()
        tail = "\n".join([*list(causes)[:3], *lines[-TAIL_LINES:]])
        return EngineStartError(f"{self.name} {what}; from its log:\n{tail}")


def free_port() -> int:
    """Return a TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
