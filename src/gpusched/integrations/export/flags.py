"""A pool's engine settings as vLLM's options, and as its command line."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from gpusched.domain.plan import PlannedPool
from gpusched.integrations.export.releases import Release
from gpusched.integrations.export.scheduler import scheduler_options

Options = dict[str, Any]
"""vLLM's options by their names with underscores: numbers, texts, switches, objects."""

KV_TRANSFER = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
"""Moves KV cache from prefill to decode engines; NIXL takes its role from each request."""


def parallel_options(pool: PlannedPool) -> Options:
    """Return how a replica is spread over its GPUs; what is 1 or off is left out."""
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    options: Options = {name: getattr(pool, name) for name in sizes if getattr(pool, name) > 1}
    if pool.enable_expert_parallel:
        options["enable_expert_parallel"] = True
    return options


def engine_options(release: Release, pool: PlannedPool) -> Options:
    """Return everything else that the plan decides about an engine of a pool."""
    engine = pool.engine
    options: Options = {"max_num_seqs": engine.max_num_seqs}
    if engine.max_num_batched_tokens is not None:
        options["max_num_batched_tokens"] = engine.max_num_batched_tokens
    options |= {
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "block_size": engine.block_size,
        "enable_prefix_caching": engine.enable_prefix_caching,
    }
    if release.plan.kv_cache_dtype == "fp8":
        options["kv_cache_dtype"] = "fp8"
    if release.quantization is not None:
        options["quantization"] = release.quantization
    options |= scheduler_options(pool)
    if pool.role != "mixed":
        options["kv_transfer_config"] = dict(KV_TRANSFER)
    return options


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as words of a command line: ``--max-num-seqs 256``, ``--no-enable-...``."""
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            words += [f"--{flag}", text]
    return words


def command_line(words: list[str]) -> str:
    """Return words as a shell reads them."""
    return shlex.join(words)
