"""A plan: what a planner answers and everything else consumes."""

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from gpusched.domain.cluster import Cluster
from gpusched.domain.document import Section, load_document, validate
from gpusched.domain.engine import EngineSettings, PolicyName
from gpusched.domain.gateway import EngineAddress, GatewaySettings
from gpusched.domain.parallel import Parallelism
from gpusched.domain.placement import BlockPlacement, Kind, LayerPlacement, NodeLayers
from gpusched.domain.slo import SloClasses
from gpusched.domain.spec import KvDtype, Objective, Spec, WeightsDtype, resolve_paths
from gpusched.domain.workload import Workload
from gpusched.errors import InputError, unknown_name

FORMAT: Literal["plan/1"] = "plan/1"


class PlannedPool(Section):
    """Replicas of one kind on one group of nodes. Sizes carry vLLM's names."""

    name: str
    role: Literal["mixed", "prefill", "decode"] = "mixed"
    nodes: str
    """Group of the cluster's nodes."""
    gpu: str
    replicas: int = Field(ge=1, le=1_000_000)
    tensor_parallel_size: int = Field(default=1, ge=1, le=1024)
    pipeline_parallel_size: int = Field(default=1, ge=1, le=1024)
    data_parallel_size: int = Field(default=1, ge=1, le=1024)
    """Units with attention and KV cache of their own that share the experts of one replica."""
    enable_expert_parallel: bool = False
    attention_gpus: int | None = Field(default=None, ge=1, le=1024)
    """GPUs of one replica with attention and KV cache, where experts have GPUs of their own."""
    expert_gpus: int | None = Field(default=None, ge=1, le=1024)
    """GPUs of one replica that share the routed experts, beside ``attention_gpus``."""
    engine: EngineSettings = EngineSettings()
    endpoints: tuple[EngineAddress, ...] = Field(default=(), max_length=100_000)
    """Addresses of the live replicas, for a gateway."""

    @property
    def layout(self) -> str:
        """How the GPUs of a replica share its work: ``TP8``, or ``3 attention + 5 expert GPUs``."""
        if self.attention_gpus is not None:
            return f"{self.attention_gpus} attention + {self.expert_gpus} expert GPUs"
        return self.parallelism.layout

    @property
    def parallelism(self) -> Parallelism:
        """The replica's degrees of parallelism; with experts apart, all GPUs as ranks."""
        if self.attention_gpus is not None and self.expert_gpus is not None:
            gpus = self.attention_gpus + self.expert_gpus
            return Parallelism(dp=gpus, ep=gpus)
        stage_gpus = self.tensor_parallel_size * self.data_parallel_size
        return Parallelism(
            tp=self.tensor_parallel_size,
            pp=self.pipeline_parallel_size,
            ep=stage_gpus if self.enable_expert_parallel else 1,
            dp=self.data_parallel_size,
        )

    @model_validator(mode="after")
    def _check_units(self) -> "PlannedPool":
        if (self.attention_gpus is None) != (self.expert_gpus is None):
            raise ValueError("give attention_gpus and expert_gpus together")
        sizes = (self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size)
        if self.attention_gpus is not None and (sizes != (1, 1, 1) or self.enable_expert_parallel):
            raise ValueError(
                "attention_gpus and expert_gpus say how a replica is spread; leave out "
                "tensor_parallel_size, pipeline_parallel_size, data_parallel_size and "
                "enable_expert_parallel"
            )
        if self.data_parallel_size > 1 and not self.enable_expert_parallel:
            raise ValueError(
                f"data_parallel_size {self.data_parallel_size} needs enable_expert_parallel: true; "
                "units that do not share experts are replicas"
            )
        return self

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.parallelism.gpus

    def __str__(self) -> str:
        role = "" if self.role == "mixed" else f" {self.role}"
        expert = "·EP" if self.enable_expert_parallel else ""
        return f"{self.replicas} × {self.gpu} {self.layout}{expert}{role}"


class PlannedStage(Section):
    """One model of a cascade and its pools."""

    model: str
    weights_dtype: WeightsDtype
    pools: tuple[PlannedPool, ...] = Field(min_length=1, max_length=1000)
    threshold: float | None = None
    """Answers that score less go on to the next model; none at the last."""
    reach: float = Field(default=1.0, ge=0, le=1)
    """Share of the requests that come here."""


class CascadeChoice(Section):
    """A point of the front of latency against quality."""

    models: tuple[str, ...]
    thresholds: tuple[float, ...]
    gpus: tuple[int, ...]
    """Of each model asked."""
    quality: float
    latency_s: float
    """By the tables of single models."""
    chosen: bool = False


class PlannedCascade(Section):
    """Models in the order they are asked."""

    stages: tuple[PlannedStage, ...] = Field(min_length=1, max_length=9)
    scores: str
    """Table of judge scores, from which the simulation draws."""
    models: tuple[str, ...]
    """Models of the table's columns."""
    judge_s: float = Field(default=0.0, ge=0, le=1e4)
    quality: float
    """Mean score of the accepted answers."""
    front: tuple[CascadeChoice, ...] = ()
    """Choices that no other beats, from fast to good."""


class Certificate(Section):
    """How the answer was found and how good it is known to be."""

    objective: Objective | Literal["latency", "throughput"]
    value: float
    """Objective of the chosen plan, in ``unit``."""
    bound: float
    """No candidate can do better than this, by the analytic bounds."""
    unit: str
    gap: float
    """(value - bound) / value."""
    solver: str
    seconds: float
    candidates: int
    """Feasible configurations."""
    simulated: int
    """Simulations run."""
    load: float | None = None
    """With rounds: share of its capacity that the busier phase uses (Z)."""
    load_bound: float | None = None
    """No split of as many GPUs has a lower load."""
    largest_found: float | None = None
    """Largest value of any candidate, where the plan is not chosen by it alone."""
    limits: tuple[str, ...] = ()
    """What the plan's value is limited by: nodes and links of a minimum cut."""


class Alternative(Section):
    """Another deployment and what it would give."""

    summary: str
    gpus: int
    usd_per_hour: float
    kg_per_hour: float
    attainment: float
    goodput_rps: float
    feasible: bool
    binding: str | None = None
    """The objective it misses, or the next one to break."""
    chosen: bool = False


class Provenance(Section):
    """What made the plan."""

    version: str
    seed: int
    inputs: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file read."""


class Plan(Section):
    """A deployment with its evidence, in schema ``plan/1``."""

    gpusched: Literal["plan/1"] = FORMAT
    model: str
    weights_dtype: WeightsDtype
    kv_cache_dtype: KvDtype = "bf16"
    cluster: Cluster
    pools: tuple[PlannedPool, ...] = Field(default=(), max_length=10_000)
    """Replicas that each hold the whole model."""
    layers: LayerPlacement | None = None
    """Instead of pools: layers of one model over unequal nodes."""
    blocks: BlockPlacement | None = None
    """Instead of pools: blocks of one model over servers far apart."""
    cascade: PlannedCascade | None = None
    """Instead of pools: models of growing size, each with pools of its own."""
    admission: PolicyName = "none"
    routing: PolicyName = "least-tokens"
    decode_routing: PolicyName | None = None
    workload: Workload
    slo: SloClasses
    objective: Objective = "cost"
    timing: str | None = None
    gateway: GatewaySettings | None = None
    predicted: dict[str, Any] = Field(default_factory=dict)
    """Metrics of the simulation, under the keys of ``simulate --json``."""
    binding_constraint: str | None = None
    certificate: Certificate | None = None
    pareto: tuple[Alternative, ...] = ()
    runners_up: tuple[Alternative, ...] = ()
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Provenance | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> "Plan":
        given = (self.layers, self.blocks, self.cascade)
        if bool(self.pools) + sum(part is not None for part in given) != 1:
            raise ValueError("give one of pools, layers, blocks and cascade")
        known = set(self.cluster.node_names) if self.layers or self.blocks else set()
        for placed in self.placed_nodes:
            if placed.node not in known:
                raise ValueError(f"{self.kind}.nodes: {unknown_name('node', placed.node, known)}")
        return self

    @model_validator(mode="after")
    def _check_pools(self) -> "Plan":
        groups = {self.cluster.group_name(i): i for i in range(len(self.cluster.nodes))}
        for pool in self.all_pools:
            if pool.nodes not in groups:
                raise ValueError(
                    f"pool {pool.name}: no group of nodes {pool.nodes!r}; the cluster has "
                    + ", ".join(groups)
                )
            group = self.cluster.nodes[groups[pool.nodes]]
            if group.gpu != pool.gpu:
                raise ValueError(
                    f"pool {pool.name}: gpu is {pool.gpu}, "
                    f"but the nodes {pool.nodes} have {group.gpu}"
                )
        for name, index in groups.items():
            used = sum(pool.gpus for pool in self.all_pools if pool.nodes == name)
            if used > self.cluster.nodes[index].total_gpus:
                raise ValueError(
                    f"the pools use {used} GPUs of the nodes {name}, which have "
                    f"{self.cluster.nodes[index].total_gpus}"
                )
        return self

    @property
    def kind(self) -> Kind:
        """What the plan places."""
        if self.cascade:
            return "cascade"
        return "layers" if self.layers else "blocks" if self.blocks else "pools"

    @property
    def all_pools(self) -> tuple[PlannedPool, ...]:
        """The pools, those of a cascade's stages in order."""
        if self.cascade is None:
            return self.pools
        return tuple(pool for stage in self.cascade.stages for pool in stage.pools)

    def stage_plan(self, index: int) -> "Plan":
        """Return one stage of a cascade as a plan of its own."""
        assert self.cascade is not None
        stage = self.cascade.stages[index]
        changes = {"model": stage.model, "weights_dtype": stage.weights_dtype}
        return self.model_copy(update={**changes, "pools": stage.pools, "cascade": None})

    @property
    def placed_nodes(self) -> tuple[NodeLayers, ...]:
        """Nodes that hold layers or blocks."""
        placement = self.layers or self.blocks
        return placement.nodes if placement is not None else ()

    def node_group(self, node: str) -> int:
        """Index of the group that a single node belongs to."""
        at = self.cluster.node_names.index(node)
        for index, group in enumerate(self.cluster.nodes):
            at -= group.count
            if at < 0:
                return index
        raise AssertionError(node)

    def group_index(self, pool: PlannedPool) -> int:
        """Index of the node group that a pool runs on."""
        names = [self.cluster.group_name(i) for i in range(len(self.cluster.nodes))]
        return names.index(pool.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all pools or nodes with layers."""
        of_nodes = sum(
            self.cluster.nodes[self.node_group(placed.node)].gpus_per_node
            for placed in self.placed_nodes
        )
        return of_nodes + sum(pool.gpus for pool in self.all_pools)

    @property
    def usd_per_hour(self) -> float:
        """Price of all GPUs."""
        of_nodes = sum(
            self.cluster.nodes[group].gpus_per_node * self.cluster.usd_per_gpu_hour(group)
            for group in (self.node_group(placed.node) for placed in self.placed_nodes)
        )
        return of_nodes + sum(
            pool.gpus * self.cluster.usd_per_gpu_hour(self.group_index(pool))
            for pool in self.all_pools
        )

    @property
    def summary(self) -> str:
        """The pools or nodes in one line."""
        if self.cascade is not None:
            return " → ".join(
                f"{stage.model}: {' + '.join(map(str, stage.pools))}"
                for stage in self.cascade.stages
            )
        if not self.pools:
            return f"{self.kind} over {len(self.placed_nodes)} nodes"
        return " + ".join(str(pool) for pool in self.pools)


def read_plan(path: str | Path) -> Plan:
    """Return the plan in a YAML or JSON file.

    Raises:
        InputError: one line for each problem, with the field and a remedy.
    """
    return plan_from(load_document(path), origin=str(path), folder=Path(path).parent)


def plan_from(values: dict[str, Any], *, origin: str = "plan", folder: Path | None = None) -> Plan:
    """Return the plan that a mapping describes.

    Raises:
        InputError: one line for each problem, with the field and a remedy.
    """
    if values.get("gpusched") != FORMAT:
        raise InputError(
            f"{origin}: gpusched: this version reads 'gpusched: {FORMAT}', "
            f"got {values.get('gpusched')!r}"
        )
    return validate(Plan, resolve_paths(values, folder or Path()), origin)


def read_spec_or_plan(path: str | Path) -> Spec | Plan:
    """Return the document in a file: a plan if it says so (``gpusched: plan/1``), else a spec.

    Raises:
        InputError: one line for each problem, with the field and a remedy.
    """
    from gpusched.domain.spec import spec_from

    values = load_document(path)
    folder = Path(path).parent
    if "gpusched" in values:
        return plan_from(values, origin=str(path), folder=folder)
    return spec_from(values, origin=str(path), folder=folder)


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as YAML, or as JSON where the name ends so.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    values = plan_document(plan)
    try:
        with path.open("w", encoding="utf-8") as file:
            if path.suffix == ".json":
                json.dump(values, file, indent=2, ensure_ascii=False, allow_nan=False)
                file.write("\n")
            else:
                yaml.safe_dump(values, file, sort_keys=False, allow_unicode=True, width=100)
    except OSError as error:
        raise InputError(f"{path}: cannot write the plan ({error.strerror})") from None


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data, what is not set left out."""
    values = plan.model_dump(mode="json", exclude_none=True)
    values["slo"] = values["slo"]["classes"]
    return values
