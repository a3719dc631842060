"""Communication between the GPUs of one replica."""

import numpy as np

from gpusched.domain.gpu import Gpu
from gpusched.timing.coefficients import Coefficients
from gpusched.timing.operators import ACTIVATION_BYTES, Floats


def all_reduce_s(size_bytes: Floats, group: int, gpu: Gpu, c: Coefficients) -> Floats:
    """Return the time of a ring or one-shot all-reduce over ``group`` GPUs.

    Beyond a node the network's share of the ring bounds it.
    """
    if group == 1:
        return np.zeros_like(size_bytes)
    local = min(group, gpu.gpus_per_node)
    index = min(int(np.log2(local)) - 1, 2) if local > 1 else 0
    share = 2.0 * (group - 1) / group
    time_s = c.all_reduce_latency_s[index] + share * size_bytes / c.all_reduce_bytes_per_s[index]
    if group > local:
        nodes = -(-group // local)
        rate = c.link_memory * gpu.nic_bytes_per_s * local
        time_s += 2.0 * np.log2(nodes) * c.link_latency_s + 2.0 * size_bytes / rate
    return np.asarray(time_s)


def expert_exchange_s(
    tokens: Floats, hidden: int, top_k: int, group: int, gpu: Gpu, c: Coefficients
) -> Floats:
    """Return dispatch (fp8) and combine (bf16) of one layer over an expert-parallel group.

    Slopes and latencies are those measured for DeepEP at hidden 7168 and top-8 within a node; a
    token goes to each rank at most once. Beyond a node, the network's rate holds.
    """
    if group == 1:
        return np.zeros_like(tokens)
    ranks = group * (1.0 - (1.0 - 1.0 / group) ** top_k)
    scale = hidden / 7168.0 * ranks / (8.0 * (1.0 - (7.0 / 8.0) ** 8))
    small = 27e-6 + 0.60e-6 * tokens * scale
    large = 75e-6 + 0.33e-6 * tokens * scale
    time_s = np.where(tokens <= 128, np.minimum(small, large), large)
    if group > gpu.gpus_per_node:
        remote = ranks * (1.0 - gpu.gpus_per_node / group)
        time_s = time_s + tokens * remote * hidden * 3.0 / (c.link_memory * gpu.nic_bytes_per_s)
    return np.asarray(time_s)


def stage_hop_s(tokens: Floats, hidden: int, gpu: Gpu, c: Coefficients) -> Floats:
    """Return the hand-over of activations to the next pipeline stage."""
    size_bytes = tokens * hidden * ACTIVATION_BYTES
    return c.link_latency_s + size_bytes / (c.link_memory * gpu.link_bytes_per_s)
