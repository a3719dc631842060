"""Tokens/s of each kind of machine by the number of layers it holds (Helix, arXiv 2406.01566)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.timing.layers import LayerProfile
from gpusched.timing.machines import Machines

Floats = NDArray[np.float64]

KV_SHARE = 0.3
"""Of the KV cache that running requests are taken to fill."""
ROUNDS = 10
"""Of the fixed point between a machine's rate and its share of a request's round trip."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Mean lengths of requests, tokens."""

    prompt_tokens: float = 750
    output_tokens: float = 240


def throughput(
    machines: Machines,
    workload: Workload,
    *,
    typical_layers: Sequence[int] | None = None,
    start: Sequence[float] | None = None,
) -> tuple[Floats, ...]:
    """Return tokens/s (prompt and output) of each kind holding 1, 2, ... layers.

    A machine's batch of decodes is its share of the requests that fit in the KV cache: the time it
    takes over the time that a token takes around the whole fleet. Rates and shares depend on each
    other, and are iterated. Tables hold for this fleet only, and need not fall evenly with k.

    Args:
        typical_layers: layers that a machine of each kind is expected to hold.
        start: layer-tokens/s of each kind to start from.
    """
    kinds = machines.kinds
    numbers = np.bincount(machines.kind_of, minlength=len(kinds))
    typical = list(typical_layers or _typical(machines, numbers))
    rates = np.array(start if start is not None else [_rate(kind, workload) for kind in kinds])
    for _ in range(ROUNDS):
        rates = np.array(
            [
                k * _tokens_per_s(machines, workload, numbers, typical, rates, kind, k)
                for kind, k in enumerate(typical)
            ]
        )
    return tuple(
        np.array(
            [
                min(
                    _tokens_per_s(machines, workload, numbers, typical, rates, kind, k),
                    profile.nic_bytes_per_s / machines.activation_bytes,
                )
                for k in range(1, min(profile.most_layers, machines.layers) + 1)
            ]
        )
        for kind, profile in enumerate(kinds)
    )


def _typical(machines: Machines, numbers: NDArray[np.intp]) -> list[int]:
    """Two thirds of what fits, or all of it where the fleet is small for the model."""
    most = [min(kind.most_layers, machines.layers) for kind in machines.kinds]
    usual = [max(round(k * 2 / 3), 1) for k in most]
    return usual if numbers @ usual >= 1.2 * machines.layers else most


def _rate(kind: LayerProfile, workload: Workload) -> float:
    tokens = workload.prompt_tokens + workload.output_tokens
    return tokens / (kind.prompt_s(workload.prompt_tokens) + kind.decode_s(workload.output_tokens))


def _tokens_per_s(
    machines: Machines,
    workload: Workload,
    numbers: NDArray[np.intp],
    typical: Sequence[int],
    rates: Floats,
    kind: int,
    k: int,
) -> float:
    profile = machines.kinds[kind]
    weights = numbers * np.asarray(typical, np.float64)
    others_s = (machines.layers - k) * float(weights @ (1 / rates)) / float(weights.sum())
    own_s = k / rates[kind]
    share = own_s / (own_s + others_s)
    room = int(KV_SHARE * profile.kv_tokens[k - 1])
    requests = room / (workload.prompt_tokens + workload.output_tokens)
    if requests < 1:
        return 0.0
    # less than one request at a time: the machine works that share of the time
    busy = min(requests * share, 1.0)
    running = max(requests * share, 1.0)
    decodes = round(running)
    prompts = running / workload.output_tokens
    prompt_tokens = round(workload.prompt_tokens * prompts)
    if prompts > 1:
        prompts, prompt_tokens = 1.0, round(workload.prompt_tokens)
        decodes = round(workload.output_tokens)
    steps = 1 / prompts
    batch_s = profile.prompt_s(int(prompt_tokens * steps)) + steps * profile.decode_s(decodes)
    return float(busy * steps * (prompt_tokens + decodes) / (k * batch_s))
