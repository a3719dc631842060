"""How long one machine takes for layers of a model, and how much KV cache it keeps beside them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LayerProfile:
    """One kind of machine that holds a range of a model's layers.

    Times are per layer and interpolated between measured sizes, along the last slope beyond them;
    a batch of nothing takes no time.
    """

    kind: str
    prompt_tokens: Floats
    """Sizes of prompt batches, ascending from 0."""
    prompt_layer_s: Floats
    """Time of one layer at these sizes."""
    decode_requests: Floats
    """Sizes of decode batches, ascending from 0."""
    decode_layer_s: Floats
    """Time of one layer at these sizes."""
    kv_tokens: Floats
    """Tokens of context that fit in every layer held when the machine holds 1, 2, ... layers; its
    length is the most layers the machine may hold."""
    nic_bytes_per_s: float

    @property
    def most_layers(self) -> int:
        """Layers the machine may hold."""
        return len(self.kv_tokens)

    def prompt_s(self, tokens: float) -> float:
        """Return the time of one layer for prompts of ``tokens`` tokens in all."""
        return _at(tokens, self.prompt_tokens, self.prompt_layer_s)

    def decode_s(self, requests: float) -> float:
        """Return the time of one layer for a decode step of ``requests`` requests."""
        return _at(requests, self.decode_requests, self.decode_layer_s)


def _at(size: float, sizes: Floats, times: Floats) -> float:
    if size <= sizes[-1]:
        return float(np.interp(size, sizes, times))
    slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
    return float(times[-1] + slope * (size - sizes[-1]))
