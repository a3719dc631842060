"""What ``gpusched place experts`` is asked: a model's experts, a network, caps and loads."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from gpusched.domain.catalog import load_model
from gpusched.domain.document import Section, absolute_path, load_document, validate
from gpusched.errors import InputError
from gpusched.moe.loads import Unit, activations, dirichlet_loads, read_loads
from gpusched.moe.topology import Topology, dragonfly, fat_tree, from_links, leaf_spine

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


LARGEST_SERVERS = 512


class TopologySpec(Section):
    """The network between servers."""

    kind: Literal["leaf-spine", "fat-tree", "dragonfly", "links"] = "leaf-spine"
    leaves: int = Field(default=8, ge=1, le=4096)
    servers_per_leaf: int = Field(default=4, ge=1, le=4096)
    spines: int = Field(default=4, ge=1, le=4096)
    ports: int = Field(default=8, ge=2, le=64)
    """Of a fat tree's switches."""
    servers: int | tuple[str, ...] | None = None
    """Of a fat tree, how many; of ``links``, their names."""
    groups: int = Field(default=4, ge=1, le=256)
    routers: int = Field(default=4, ge=1, le=256)
    servers_per_router: int = Field(default=2, ge=1, le=256)
    links: tuple[tuple[str, str], ...] = Field(default=(), max_length=100_000)
    """Pairs of names; what is not a server is a switch."""
    removed_links: float = Field(default=0.0, ge=0, lt=1)
    """Share of the links between switches that a sparse variant lacks."""

    def build(self, seed: int) -> Topology:
        """Return the network."""
        if self.kind == "links":
            if not isinstance(self.servers, tuple):
                raise InputError("topology.servers: with kind links, give the servers' names")
            found = from_links(self.servers, self.links)
        elif self.kind == "fat-tree":
            if isinstance(self.servers, tuple):
                raise InputError("topology.servers: of a fat tree, give how many")
            found = fat_tree(self.ports, self.servers)
        elif self.kind == "dragonfly":
            found = dragonfly(self.groups, self.routers, self.servers_per_router)
        else:
            found = leaf_spine(self.leaves, self.servers_per_leaf, self.spines)
        if found.servers > LARGEST_SERVERS:
            raise InputError(f"topology: {found.servers} servers; {LARGEST_SERVERS} at most")
        return found.sparse(self.removed_links, seed) if self.removed_links else found


class LoadsSpec(Section):
    """How often experts are chosen; one of ``file``, ``concentration`` and ``uniform``."""

    file: str | None = None
    where: dict[str, str | int] = Field(default_factory=dict)
    """Rows of the file to use, by values of its other columns."""
    unit: Unit = "tokens"
    concentration: float | None = Field(default=None, gt=0, le=1e6)
    """Of a symmetric Dirichlet distribution to draw shares from."""
    uniform: bool = False

    @model_validator(mode="after")
    def _check(self) -> "LoadsSpec":
        if (self.file is not None) + (self.concentration is not None) + self.uniform != 1:
            raise ValueError("give one of file, concentration and uniform: true")
        return self


class ExpertSpec(Section):
    """A question about expert placement."""

    model: str | None = None
    layers: int | None = Field(default=None, ge=1, le=1000)
    """Layers with experts."""
    experts: int | None = Field(default=None, ge=1, le=65536)
    """Routed experts of a layer."""
    top_k: int | None = Field(default=None, ge=1, le=1024)
    topology: TopologySpec = TopologySpec()
    gpus_per_server: int = Field(default=8, ge=1, le=1024)
    experts_per_layer: int | tuple[int, ...] | None = None
    """Experts of one layer that a server may hold, or one figure a server; twice an even share
    if not given."""
    experts_per_server: int | tuple[int, ...] | None = None
    """Experts of all layers that a server may hold, or one figure a server; an even share, rounded
    up, if not given."""
    loads: LoadsSpec
    hosts: Literal["consecutive", "all"] | tuple[int, ...] = "consecutive"
    """Servers with attention: layer l on server l mod S, every layer on all, or one a layer."""
    server_load_ratio: float | None = Field(default=None, ge=1, le=1e6)
    """Most load of a server in a layer, over the mean; as it comes if not given."""
    replicas: int = Field(default=0, ge=0, le=65536)
    """Extra copies of a layer's experts."""
    previous: str | None = None
    """A placement written by ``-o`` to start from."""
    move_hops: float = Field(default=0.0, ge=0, le=1e6)
    """What moving one expert may cost, in hops per token."""

    @model_validator(mode="after")
    def _check(self) -> "ExpertSpec":
        own = (self.layers, self.experts, self.top_k)
        if (self.model is None) == (None in own) or (self.model is not None and any(own)):
            raise ValueError("give either model, or all of layers, experts and top_k")
        if self.experts is not None and self.top_k is not None and self.top_k > self.experts:
            raise ValueError(f"top_k: {self.top_k} exceeds the {self.experts} experts of a layer")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers with experts, experts of each, experts a token chooses."""
        if self.model is None:
            return self.layers or 0, self.experts or 0, self.top_k or 0
        model = load_model(self.model)
        if model.moe is None:
            raise InputError(f"model: {self.model} has no experts")
        return model.moe_layers, model.moe.experts, model.moe.top_k

    def weights(self, seed: int) -> Floats:
        """Return activations per token, shape (layers, experts)."""
        layers, experts, top_k = self.shape
        if self.loads.file is None:
            if self.loads.uniform:
                return np.full((layers, experts), top_k / experts)
            assert self.loads.concentration is not None
            return dirichlet_loads(layers, experts, top_k, self.loads.concentration, seed)
        loads = read_loads(self.loads.file, self.loads.where)
        if loads.shape != (layers, experts):
            raise InputError(
                f"loads.file: holds {loads.shape[0]} layers of {loads.shape[1]} experts, "
                f"but the model has {layers} of {experts}"
            )
        return activations(loads, top_k, unit=self.loads.unit, name="loads.file")

    def caps(self, servers: int) -> tuple[Ints, Ints]:
        """Return the caps of each server on one layer's and on all experts, each of shape (S,)."""
        layers, experts, _ = self.shape
        items = experts + self.replicas
        per_layer = self.experts_per_layer
        total = self.experts_per_server
        return (
            _each("experts_per_layer", 2 * -(-items // servers) if per_layer is None else per_layer,
                  servers),
            _each("experts_per_server", -(-layers * items // servers) if total is None else total,
                  servers),
        )  # fmt: skip


def _each(name: str, value: int | tuple[int, ...], servers: int) -> Ints:
    caps = np.full(servers, value) if isinstance(value, int) else np.array(value, np.int64)
    if len(caps) != servers:
        raise InputError(f"{name}: needs one figure or {servers}, one a server; got {len(caps)}")
    if caps.min() < 0:
        raise InputError(f"{name}: must be at least 0, got {int(caps.min())}")
    return caps


def read_expert_spec(path: str | Path) -> ExpertSpec:
    """Return the spec in a YAML or JSON file, paths in it as seen from its folder.

    Raises:
        InputError: one line for each problem, with the field and a remedy.
    """
    values = load_document(path)
    folder = Path(path).parent
    loads = values.get("loads")
    if isinstance(loads, dict) and isinstance(loads.get("file"), str):
        values = values | {"loads": loads | {"file": absolute_path(loads["file"], folder)}}
    if isinstance(values.get("previous"), str):
        values = values | {"previous": absolute_path(values["previous"], folder)}
    return validate(ExpertSpec, values, str(path))


def read_servers(path: str | Path) -> Ints:
    """Return the servers of a placement written by ``gpusched place experts -o``.

    Raises:
        InputError: the file is no such placement.
    """
    try:
        document: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        return np.asarray(document["servers"], np.int64)
    except OSError as error:
        raise InputError(f"previous: {path}: cannot read the file ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"previous: {path}: not a placement written by gpusched place experts -o"
        ) from None
