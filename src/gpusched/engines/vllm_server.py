"""vLLM on the CPU, serving the tiny model or another one.

vLLM may live in another environment than gpusched, since it pins versions of its own:
``GPUSCHED_VLLM_PYTHON`` names that interpreter; else ``.venv-engines`` in the working directory or
beside the repository is used, else this interpreter.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gpusched
from gpusched.compilation import user_cache_dir
from gpusched.engines.process import EngineServer, free_port
from gpusched.engines.tiny_model import NAME, tiny_model
from gpusched.errors import InputError

START_LIMIT_S = 240.0

INSTALL = (
    "python3 -m venv .venv-engines && .venv-engines/bin/pip install -r constraints-engines.txt && "
    ".venv-engines/bin/pip uninstall -y torchvision torchaudio torchcodec triton"
)

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def vllm_python() -> Path:
    """Return the interpreter that has vLLM.

    Raises:
        InputError: none has; the message says how to install it.
    """
    named = os.environ.get("GPUSCHED_VLLM_PYTHON")
    if named:
        if not _has_vllm(named):
            raise InputError(f"GPUSCHED_VLLM_PYTHON: {named} cannot be run or has no vllm package")
        return Path(named)
    roots = (Path.cwd(), Path(gpusched.__file__).resolve().parents[2])
    for python in [*(str(root / ".venv-engines/bin/python") for root in roots), sys.executable]:
        if _has_vllm(python):
            return Path(python)
    raise InputError(
        "vLLM is not installed; in the repository run\n"
        f"  {INSTALL}\nor set GPUSCHED_VLLM_PYTHON to an interpreter that has it"
    )


@lru_cache(maxsize=8)
def _has_vllm(python: str) -> bool:
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def vllm_command(
    *,
    port: int,
    model: Path | None = None,
    served_model_name: str = NAME,
    max_model_len: int = 2048,
    max_num_seqs: int = 32,
    num_gpu_blocks: int | None = None,
    block_size: int = 32,
    batching: str | None = None,
    extra: Sequence[str] = (),
) -> list[str]:
    """Return the command that serves a model.

    ``num_gpu_blocks`` caps the KV cache; ``batching`` runs a policy of gpusched inside vLLM. The CPU's
    attention wants a multiple of 32 as ``block_size``.
    """
    command = [
        str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model or tiny_model().folder), "--served-model-name", served_model_name,
        "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", str(max_model_len), "--max-num-seqs", str(max_num_seqs),
        "--block-size", str(block_size), "--enforce-eager",
    ]  # fmt: skip
    if num_gpu_blocks is not None:
        command += ["--num-gpu-blocks-override", str(num_gpu_blocks)]
    if batching is not None:
        raise InputError(
            f"batching {batching!r} inside vLLM: gpusched's scheduler for vLLM is not there yet; "
            "leave batching out, or run gpusched engine simulated with it"
        )
    return [*command, *extra]


def vllm_environment(*, kv_cache_gb: int = 1, threads: int = 1) -> dict[str, str]:
    """Return what vLLM's environment needs; one thread a server serves the tiny model fastest."""
    return {
        **ENVIRONMENT,
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gb),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(_path_to_this_package()),
    }


@lru_cache(maxsize=1)
def _path_to_this_package() -> Path:
    """Return a folder that holds this package alone: vLLM's own packages must not be shadowed."""
    own = Path(gpusched.__file__).resolve().parent
    folder = user_cache_dir() / "path" / hashlib.sha256(bytes(own)).hexdigest()[:16]
    link = folder / own.name
    if not link.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(own)
    return folder


def start_vllm(
    *, port: int = 0, limit_s: float = START_LIMIT_S, threads: int = 1, wait: bool = True,
    **settings: Any,
) -> EngineServer:  # fmt: skip
    """Start ``vllm serve`` on a free port, or the given one, and wait until it is healthy.

    ``settings`` are those of ``vllm_command``. With ``wait=False`` several can start side by side;
    call ``wait`` of each then.

    Raises:
        InputError: vLLM is not installed.
        EngineStartError: it does not come up.
    """
    port = port or free_port()
    server = EngineServer(
        "vLLM", vllm_command(port=port, **settings), port, vllm_environment(threads=threads)
    )
    return server.wait(limit_s) if wait else server
