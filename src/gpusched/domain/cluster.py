"""The machines at hand: nodes, where they stand, what joins them, what they cost."""

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field, model_validator

from gpusched.domain.catalog import load_gpu
from gpusched.domain.document import Section
from gpusched.domain.gpu import Gpu
from gpusched.domain.names import GpuName
from gpusched.domain.network import Network
from gpusched.errors import unknown_name

LIFETIME_HOURS = 5 * 365.25 * 24
"""Embodied carbon is written off evenly over five years (GreenLLM, arXiv 2412.20322)."""


class NodeGroup(Section):
    """Equal nodes in one region."""

    name: str = Field(default="", max_length=200)
    gpu: GpuName
    gpus: int | None = Field(default=None, ge=1, le=1024)
    """GPUs of one node; the GPU's usual number if not given."""
    count: int = Field(default=1, ge=1, le=1_000_000)
    """Nodes in the group."""
    region: str = "world"
    usd_per_gpu_hour: float | None = Field(default=None, ge=0, le=1e5)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of one node."""
        return self.gpus if self.gpus is not None else load_gpu(self.gpu).gpus_per_node

    @property
    def total_gpus(self) -> int:
        """GPUs of all nodes of the group."""
        return self.count * self.gpus_per_node


class Cluster(Section):
    """Groups of nodes and the network between nodes."""

    nodes: tuple[NodeGroup, ...] = Field(min_length=1, max_length=10_000)
    inter_node_gbps: float | None = Field(default=None, gt=0, le=1e6)
    """Network of one node, gigabits a second, one direction; the GPUs' own NICs if not given."""
    network: Network = Network()
    """Links between single nodes, where layers or blocks of one model are spread over them."""
    prices: Literal["neocloud", "hyperscaler"] = "neocloud"
    """Which of the catalog's prices holds where a group names none."""
    carbon_g_per_kwh: dict[str, float] = Field(default_factory=dict)
    """Carbon intensity by region, beside the built-in yearly means."""
    pue: float = Field(default=1.2, ge=1, le=3)
    """Power usage effectiveness: energy of the data centre over that of the machines."""

    @model_validator(mode="after")
    def _check(self) -> "Cluster":
        if sum(group.total_gpus for group in self.nodes) > 1_000_000:
            raise ValueError("more than a million GPUs in all; give a smaller cluster")
        names = [group.name for group in self.nodes if group.name]
        if len(set(names)) < len(names):
            raise ValueError("two groups of nodes have the same name; names must differ")
        for region, grams in self.carbon_g_per_kwh.items():
            if not 0 <= grams <= 5000:
                raise ValueError(f"carbon_g_per_kwh of {region} must lie in 0 to 5000, got {grams}")
        known = carbon_intensities().keys() | self.carbon_g_per_kwh.keys()
        for group in self.nodes:
            if group.region not in known:
                raise ValueError(
                    unknown_name("region", group.region, known)
                    + " (or give its carbon_g_per_kwh in the cluster)"
                )
        if self.network.links or self.network.front is not None:
            self._check_network()
        return self

    def _check_network(self) -> None:
        if sum(group.count for group in self.nodes) > 10_000:
            raise ValueError("network: links between single nodes are for 10,000 nodes at most")
        front, known = self.network.front, self.places
        regions = [name for name, kind in known.items() if kind == "region"]
        if front is not None and front not in regions:
            raise ValueError("network.front: " + unknown_name("region", front, regions))
        for link in self.network.links:
            for end in link.ends:
                if end not in known:
                    raise ValueError("network.links: " + unknown_name("place", end, known))

    def group_name(self, index: int) -> str:
        """Name of a group, its GPU's where it has none of its own."""
        group = self.nodes[index]
        return group.name or f"{group.gpu}-{index}"

    @property
    def node_names(self) -> list[str]:
        """Names of the single nodes: the group's, numbered where the group has several."""
        return [
            self.group_name(index) if group.count == 1 else f"{self.group_name(index)}-{number}"
            for index, group in enumerate(self.nodes)
            for number in range(group.count)
        ]

    @property
    def places(self) -> dict[str, str]:
        """What a link may name, and what it is: region, group of nodes, node, or the front."""
        known = {group.region: "region" for group in self.nodes}
        known |= {self.group_name(index): "group" for index in range(len(self.nodes))}
        known |= dict.fromkeys(self.node_names, "node")
        return known | {"front": "front"}

    @property
    def total_gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(group.total_gpus for group in self.nodes)

    def usd_per_gpu_hour(self, index: int) -> float:
        """Price of one GPU-hour in a group."""
        group = self.nodes[index]
        if group.usd_per_gpu_hour is not None:
            return group.usd_per_gpu_hour
        gpu = load_gpu(group.gpu)
        return gpu.usd_per_hour if self.prices == "neocloud" else gpu.usd_per_hour_hyperscaler

    def kg_per_kwh(self, index: int) -> float:
        """Carbon intensity at a group's region, kg CO2e per kWh."""
        region = self.nodes[index].region
        grams = self.carbon_g_per_kwh.get(region)
        return (carbon_intensities()[region] if grams is None else grams) / 1e3

    def inter_node_bytes_per_s(self, index: int) -> float:
        """Network between nodes, per GPU of a group, one direction."""
        group = self.nodes[index]
        if self.inter_node_gbps is None:
            return load_gpu(group.gpu).nic_bytes_per_s
        return self.inter_node_gbps * 1e9 / 8 / group.gpus_per_node


def embodied_kg_per_hour(gpu: Gpu) -> float:
    """Embodied carbon of one GPU-hour."""
    return gpu.embodied_kg / LIFETIME_HOURS


@cache
def carbon_intensities() -> dict[str, float]:
    """Yearly mean carbon intensity by region, g CO2e per kWh."""
    text = resources.files("gpusched.domain.catalog").joinpath("regions.toml").read_text("utf-8")
    return {region: float(grams) for region, grams in tomllib.loads(text).items()}
