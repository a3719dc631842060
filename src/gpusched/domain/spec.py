"""What a user asks: a model, machines, traffic, service levels and what to optimise."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from gpusched.domain.cache import Cache, resolve_cache
from gpusched.domain.cascade import Cascade
from gpusched.domain.catalog import load_model
from gpusched.domain.cluster import Cluster
from gpusched.domain.document import Section, absolute_path, load_document, validate
from gpusched.domain.engine import EngineSettings, PolicyName
from gpusched.domain.names import ModelName
from gpusched.domain.slo import SloClasses
from gpusched.domain.workload import Workload

Objective = Literal["cost", "goodput", "carbon", "gpus"]
WeightsDtype = Literal["bf16", "fp8", "int8", "mxfp4", "nvfp4", "int4"]
KvDtype = Literal["bf16", "fp8"]


class Search(Section):
    """Limits on what the planner tries."""

    roles: tuple[Literal["mixed", "disaggregated"], ...] = Field(
        default=("mixed", "disaggregated"), min_length=1
    )
    gpus: tuple[str, ...] | None = None
    """GPU types to use; all of the cluster's if not given."""
    tensor_parallel_sizes: tuple[PositiveInt, ...] | None = None
    pipeline_parallel_sizes: tuple[PositiveInt, ...] | None = None
    max_num_batched_tokens: tuple[PositiveInt, ...] = (2048, 8192)
    """Token budgets to try."""
    max_gpus: PositiveInt | None = None
    """GPUs to use at most."""


class Spec(Section):
    """A planning question. See the reference of the spec format."""

    model: ModelName
    weights_dtype: WeightsDtype | None = None
    """The model's own if not given."""
    kv_cache_dtype: KvDtype = "bf16"
    cluster: Cluster
    workload: Workload
    slo: SloClasses
    objective: Objective = "cost"
    engine: EngineSettings = EngineSettings()
    routing: PolicyName = "least-tokens"
    decode_routing: PolicyName | None = None
    """Choice of the decode replica; ``routing`` if not given."""
    admission: PolicyName = "none"
    search: Search = Search()
    cascade: Cascade | None = None
    """Smaller models that answer first."""
    cache: Cache | None = None
    """A store of KV cache outside the engines, sized hour by hour for carbon."""
    timing: str | None = None
    """Path of a file with coefficients calibrated on one's own engines."""

    @model_validator(mode="after")
    def _check_search(self) -> "Spec":
        if self.search.gpus is not None:
            present = sorted({group.gpu for group in self.cluster.nodes})
            for name in self.search.gpus:
                if name not in present:
                    raise ValueError(
                        f"search.gpus names {name!r}, but the cluster has {', '.join(present)}"
                    )
        return self

    @property
    def dtype(self) -> str:
        """Format of the weights."""
        return self.weights_dtype or load_model(self.model).native_dtype


def read_spec(path: str | Path) -> Spec:
    """Return the spec in a YAML or JSON file; paths in it are relative to the file.

    Raises:
        InputError: one line for each problem, with the field and a remedy.
    """
    return spec_from(load_document(path), origin=str(path), folder=Path(path).parent)


def spec_from(values: dict[str, Any], *, origin: str = "spec", folder: Path | None = None) -> Spec:
    """Return the spec that a mapping describes.

    Raises:
        InputError: one line for each problem, with the field and a remedy.
    """
    return validate(Spec, resolve_paths(values, folder or Path()), origin)


def resolve_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a document with the paths it names made absolute."""
    values = dict(values)
    model = values.get("model")
    if isinstance(model, str) and (model.endswith(".json") or model.startswith((".", "~"))):
        values["model"] = absolute_path(model, folder)
    if isinstance(values.get("timing"), str):
        values["timing"] = absolute_path(values["timing"], folder)
    cascade = values.get("cascade")
    if isinstance(cascade, dict):
        cascade = _resolve_file(cascade, "scores", folder)
        if isinstance(cascade.get("stages"), list):
            cascade["stages"] = [_resolve_stage(stage, folder) for stage in cascade["stages"]]
        values["cascade"] = cascade
    if isinstance(values.get("cache"), dict):
        values["cache"] = resolve_cache(values["cache"], folder)
    values = resolve_policies(values, folder)
    if isinstance(values.get("gateway"), dict):
        values["gateway"] = _resolve_gateway(values["gateway"], folder)
    if isinstance(values.get("engine"), dict):
        values["engine"] = resolve_policies(values["engine"], folder)
    if isinstance(values.get("pools"), list):
        values["pools"] = [_resolve_pool(pool, folder) for pool in values["pools"]]
    layers = values.get("layers")
    if isinstance(layers, dict) and isinstance(layers.get("nodes"), list):
        nodes = [
            {**node, "endpoint": _resolve_file(node["endpoint"], "api_key_file", folder)}
            if isinstance(node, dict) and "endpoint" in node
            else node
            for node in layers["nodes"]
        ]
        values["layers"] = {**layers, "nodes": nodes}
    workload = values.get("workload")
    if isinstance(workload, dict) and isinstance(workload.get("trace"), str) and workload["trace"]:
        values["workload"] = {**workload, "trace": absolute_path(workload["trace"], folder)}
    return values


def _resolve_file(section: Any, field: str, folder: Path) -> Any:
    if isinstance(section, dict) and isinstance(section.get(field), str):
        return {**section, field: absolute_path(section[field], folder)}
    return dict(section) if isinstance(section, dict) else section


def _resolve_gateway(gateway: dict[str, Any], folder: Path) -> dict[str, Any]:
    for field in ("tokenizer", "request_log"):
        gateway = _resolve_file(gateway, field, folder)
    if isinstance(gateway.get("tls"), dict):
        for field in ("certificate", "key"):
            gateway["tls"] = _resolve_file(gateway["tls"], field, folder)
    return gateway


def _resolve_pool(pool: Any, folder: Path) -> Any:
    if not isinstance(pool, dict):
        return pool
    pool = dict(pool)
    if isinstance(pool.get("engine"), dict):
        pool["engine"] = resolve_policies(pool["engine"], folder)
    if isinstance(pool.get("endpoints"), list):
        pool["endpoints"] = [
            _resolve_file(endpoint, "api_key_file", folder) for endpoint in pool["endpoints"]
        ]
    return pool


def _resolve_stage(stage: Any, folder: Path) -> Any:
    if not isinstance(stage, dict) or not isinstance(stage.get("pools"), list):
        return stage
    return {**stage, "pools": [_resolve_pool(pool, folder) for pool in stage["pools"]]}


def resolve_policies(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a section with the files of a user's own policies made absolute."""
    values = dict(values)
    for field in ("admission", "routing", "decode_routing", "batching"):
        named = values.get(field)
        name = named.get("name") if isinstance(named, dict) else named
        if isinstance(name, str) and ".py:" in name:
            path, _, function = name.rpartition(":")
            full = f"{absolute_path(path, folder)}:{function}"
            values[field] = {**named, "name": full} if isinstance(named, dict) else full
    return values
