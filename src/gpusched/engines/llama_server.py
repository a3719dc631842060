"""llama.cpp's server, from the ``xllamacpp`` package, serving the tiny model or another GGUF file."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from gpusched.engines import llama_child
from gpusched.engines.process import EngineServer, free_port
from gpusched.engines.tiny_model import NAME, tiny_model
from gpusched.errors import InputError

START_LIMIT_S = 30.0


def llama_command(
    *, port: int, model: Path | None = None, served_model_name: str = NAME, slots: int = 8,
    context_tokens: int = 2048, threads: int = 1,
) -> Sequence[str]:  # fmt: skip
    """Return the command that serves a GGUF file with ``slots`` requests at a time, each of up to
    ``context_tokens``.

    Raises:
        InputError: xllamacpp or gguf is not installed.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise InputError("llama.cpp is not installed: pip install 'gpusched[engines]' (xllamacpp)")
    file = model or tiny_model().gguf
    if file is None:
        raise InputError(
            "the tiny model in llama.cpp's format needs: pip install 'gpusched[engines]'"
        )
    return [
        sys.executable, llama_child.__file__, str(file), served_model_name, str(port), str(slots),
        str(context_tokens), str(threads),
    ]  # fmt: skip


def start_llama(
    *, port: int = 0, limit_s: float = START_LIMIT_S, model: Path | None = None, slots: int = 8,
    context_tokens: int = 2048, threads: int = 1,
) -> EngineServer:  # fmt: skip
    """Start llama.cpp's server on a free port, or the given one, and wait until it is healthy.

    Raises:
        InputError: it is not installed.
        EngineStartError: it does not come up.
    """
    port = port or free_port()
    command = llama_command(
        port=port, model=model, slots=slots, context_tokens=context_tokens, threads=threads
    )
    return EngineServer("llama.cpp", command, port, {}).wait(limit_s)
