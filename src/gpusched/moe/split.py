"""The experts of a server on its GPUs: as many on each as on any other, and loads even."""

import numpy as np
from numpy.typing import NDArray

from gpusched.compilation import entry_kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def split_servers(at: Ints, weight: Floats, servers: int, gpus_per_server: int) -> Ints:
    """Return the GPU of each item, shape (layers, items); GPUs of server s are s g to s g + g - 1.

    In each layer a server's GPUs hold n / g items rounded down or up, and over all layers totals that
    differ by at most one. Within these counts each layer's items go heaviest first to the lightest
    GPU with room (longest processing time first).
    """
    layers, items = at.shape
    gpu = np.empty((layers, items), np.int64)
    order = np.argsort(-weight, axis=1, kind="stable")
    total = np.zeros((servers, gpus_per_server), np.int64)
    room = np.empty((servers, gpus_per_server), np.int64)
    load = np.empty((servers, gpus_per_server), np.float64)
    _split(at, weight, order, total, room, load, gpu)
    return gpu


def load_ratios(gpu: Ints, weight: Floats, gpus: int) -> Floats:
    """Return the busiest GPU's load over the mean GPU's in each layer, shape (layers,)."""
    layers = len(gpu)
    flat = np.arange(layers)[:, None] * gpus + gpu
    load = np.bincount(flat.ravel(), weight.ravel(), minlength=layers * gpus).reshape(layers, gpus)
    return np.asarray(load.max(axis=1) / load.mean(axis=1), np.float64)


@entry_kernel
def _split(at, weight, order, total, room, load, gpu):
    layers, items = at.shape
    servers, gpus = total.shape
    for layer in range(layers):
        for s in range(servers):
            for g in range(gpus):
                room[s, g] = 0
                load[s, g] = 0.0
        for item in range(items):
            # the next place of a server goes to the GPU with fewest here, then over all layers
            s = at[layer, item]
            least = 0
            for g in range(1, gpus):
                if room[s, g] < room[s, least] or (
                    room[s, g] == room[s, least] and total[s, g] < total[s, least]
                ):
                    least = g
            room[s, least] += 1
            total[s, least] += 1
        for place in range(items):
            item = order[layer, place]
            s = at[layer, item]
            lightest = -1
            for g in range(gpus):
                if room[s, g] > 0 and (lightest < 0 or load[s, g] < load[s, lightest]):
                    lightest = g
            room[s, lightest] -= 1
            load[s, lightest] += weight[layer, item]
            gpu[layer, item] = s * gpus + lightest
