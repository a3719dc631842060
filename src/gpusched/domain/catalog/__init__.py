"""What is known of GPUs and models, by name; figures and sources are in the TOML files."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from gpusched.domain.gpu import Gpu
from gpusched.domain.model import (
    GroupedQueryAttention,
    LatentAttention,
    LinearAttention,
    MixtureOfExperts,
    Model,
)
from gpusched.errors import InputError, unknown_name

GB = 1e9
ATTENTION = {"gqa": GroupedQueryAttention, "mla": LatentAttention}


def gpu_names() -> tuple[str, ...]:
    """Names of all GPU types, in catalog order."""
    return tuple(_tables("gpus.toml"))


def model_names() -> tuple[str, ...]:
    """Names of all models, in catalog order."""
    return tuple(_tables("models.toml"))


def load_gpu(name: str) -> Gpu:
    """Return a GPU type by name or alias, in any case, ``-`` and ``_`` alike.

    Raises:
        InputError: no such GPU; the message suggests the nearest names.
    """
    key = _resolve("gpus.toml", name)
    if key is None:
        raise InputError(unknown_name("GPU", name, gpu_names()))
    row = _tables("gpus.toml")[key]
    return Gpu(
        name=key,
        vendor=row["vendor"],
        flops={dtype: tera * 1e12 for dtype, tera in row["tflops"].items()},
        memory_bytes=row["memory_gb"] * GB,
        memory_bytes_per_s=row["memory_gb_per_s"] * GB,
        link_bytes_per_s=row["link_gb_per_s"] / 2 * GB,
        nic_bytes_per_s=row["nic_gb_per_s"] * GB,
        gpus_per_node=row["gpus_per_node"],
        tdp_w=row["tdp_w"],
        idle_w=row["idle_w"],
        usd_per_hour=row["usd_per_hour"],
        usd_per_hour_hyperscaler=row["usd_per_hour_hyperscaler"],
        embodied_kg=row["embodied_kg"],
        embodied_kg_act=row.get("embodied_kg_act"),
        source=row["source"],
        as_of=row["as_of"],
    )


def load_model(name: str) -> Model:
    """Return a model by catalog name, by Hugging Face id, or from a ``config.json`` by path.

    Raises:
        InputError: no such model or file, or a configuration that cannot be read.
    """
    key = _resolve("models.toml", name)
    if key is not None:
        return _model(key, _tables("models.toml")[key])
    path = Path(name).expanduser()
    if path.suffix == ".json" or path.exists():
        from gpusched.domain.hf_config import read_hf_config

        return read_hf_config(path)
    raise InputError(
        unknown_name("model", name, model_names())
        + "; or give the path of a Hugging Face config.json"
    )


def aliases(catalog: str) -> dict[str, tuple[str, ...]]:
    """Return the other names of each entry of ``gpus`` or ``models``."""
    return {name: tuple(row.get("aliases", ())) for name, row in _tables(f"{catalog}.toml").items()}


def _model(name: str, row: Mapping[str, Any]) -> Model:
    fields = {key: value for key, value in row.items() if key != "aliases"}
    attention = dict(fields.pop("attention"))
    fields["attention"] = ATTENTION[attention.pop("kind")](
        **({"query_rank": None} | attention if "kv_rank" in attention else attention)
    )
    if "moe" in fields:
        fields["moe"] = MixtureOfExperts(**fields["moe"])
    if "linear_attention" in fields:
        fields["linear_attention"] = LinearAttention(**fields["linear_attention"])
    fields.setdefault("ffn_dim", 0)
    return Model(name=name, **fields)


@cache
def _tables(file: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads(resources.files(__name__).joinpath(file).read_text(encoding="utf-8"))


@cache
def _index(file: str) -> dict[str, str]:
    tables = _tables(file)
    index = {_fold(alias): name for name, row in tables.items() for alias in row.get("aliases", ())}
    return index | {_fold(name): name for name in tables}


def _resolve(file: str, name: str) -> str | None:
    return _index(file).get(_fold(name))


def _fold(name: str) -> str:
    return name.strip().lower().replace("-", "_")
