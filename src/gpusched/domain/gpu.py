"""A GPU type: what its data sheet promises, what it costs and what it emits."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU type. Rates are peak, dense (no sparsity), decimal units."""

    name: str
    vendor: str
    flops: dict[str, float] = field(hash=False)
    """Peak FLOP/s by arithmetic dtype: keys among ``bf16, fp8, fp4, int8``."""
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Scale-up link (NVLink, xGMI, PCIe), one direction, per GPU."""
    nic_bytes_per_s: float
    """Scale-out network, one direction, per GPU."""
    gpus_per_node: int
    tdp_w: float
    idle_w: float
    usd_per_hour: float
    """Default price of one GPU-hour, neocloud on demand."""
    usd_per_hour_hyperscaler: float
    embodied_kg: float
    """Embodied carbon of one GPU with its share of the server, kg CO2e, life-cycle assessment."""
    embodied_kg_act: float | None
    """The lower ACT-style figure (die area and memory only), where one is published."""
    source: str
    as_of: str
