"""A simulated engine in a process of its own."""

import json
import sys
import urllib.error
import urllib.request
from typing import Any

import numpy as np

from gpusched.engines.process import EngineServer, free_port
from gpusched.errors import InputError
from gpusched.timing.compiled import CompiledTiming

START_LIMIT_S = 60.0


def affine_timing(
    iteration_s: float, prompt_token_s: float, decode_s: float = 0.0
) -> CompiledTiming:
    """Return a timing model in which an iteration takes a fixed time, and so much more for each
    prompt token and each decoding sequence."""
    tokens, sequences = np.arange(2.0), np.arange(2.0)
    return CompiledTiming(
        iteration_s + prompt_token_s * tokens, iteration_s + decode_s * sequences,
        0.0 * sequences, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0,
    )  # fmt: skip


class SimulatedServer(EngineServer):
    """A simulated engine that this process started, with its control port."""

    def __init__(self, command: list[str], port: int, control_port: int) -> None:
        super().__init__("simulated engine", command, port, {})
        self.control_url = f"http://127.0.0.1:{control_port}"

    def set_faults(self, **values: Any) -> dict[str, Any]:
        """Set faults, those not named being off; return what has happened so far.

        Raises:
            InputError: no such fault, or a value out of range.
        """
        return self._control(json.dumps(values).encode())

    def told(self) -> dict[str, Any]:
        """Return what has happened so far."""
        return self._control(None)

    def _control(self, body: bytes | None) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(self.control_url, body, timeout=10.0) as answer:
                told: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise InputError(json.load(error)["error"]["message"]) from None
        return told


def start_simulated(
    *options: str, port: int = 0, limit_s: float = START_LIMIT_S
) -> SimulatedServer:
    """Start ``gpusched engine simulated`` with these options on a free port, or the given one.

    Raises:
        EngineStartError: it does not come up.
    """
    port, control_port = port or free_port(), free_port()
    command = [
        sys.executable, "-m", "gpusched.cli.main", "engine", "simulated", "--port", str(port),
        "--control-port", str(control_port), *options,
    ]  # fmt: skip
    server = SimulatedServer(command, port, control_port)
    server.wait(limit_s)
    return server
