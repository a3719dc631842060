"""The servers of the BPRR paper's experiments (arXiv 2512.21884): BLOOM-176B on A100 GPUs and slices.

Figures are those of the paper's public simulator: 70 blocks in NF4, times of one block on a whole
A100 and on a 1g slice, round trips and overheads of a clustered testbed and of wide-area networks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from gpusched.planning.blocks.petals import PetalsRates
from gpusched.timing.chains import BlockServers, Floats

BLOCKS = 70
HIDDEN = 14336
BLOCK_BYTES = 2_466_437_120 * 4.25 / 8 * 1.01
CACHE_TOKEN_BYTES = 2.0 * HIDDEN * 2
PROMPT, OUTPUT = 20, 128
SESSION_S = 0.070


@dataclass(frozen=True)
class Machine:
    """A GPU or a slice of one."""

    memory_bytes: float
    decode_block_s: float
    prefill_block_s: tuple[float, float]
    """Fixed part and part a token."""
    forward_rps: float
    network_rps: float


A100 = Machine(79.13e9, 3.2197e-3, (32.99e-3, 0.0743e-3), 20829.0, 3020.0)
SLICE = Machine(8.2e9, 16.2488e-3, (206.35e-3, 0.1041e-3), 2757.7, 3138.0)


def servers_of(
    machines: Sequence[Machine],
    client_rtt_s: ArrayLike,
    server_rtt_s: ArrayLike,
    *,
    overhead_s: float,
) -> BlockServers:
    """Return servers with the paper's overheads; ``client_rtt_s`` has shape (C, n)."""
    rtt_s = np.atleast_2d(np.asarray(client_rtt_s, np.float64))
    return BlockServers(
        names=tuple(f"{'a100' if m.memory_bytes > 4e10 else 'slice'}-{i}" for i, m in enumerate(machines)),
        memory_bytes=np.array([m.memory_bytes for m in machines]),
        decode_block_s=np.array([m.decode_block_s for m in machines]),
        prefill_block_s=np.array([m.prefill_block_s for m in machines]).T.copy(),
        decode_trip_s=rtt_s + overhead_s,
        prefill_trip_s=np.stack([rtt_s + 67e-3, np.full_like(rtt_s, 0.7049e-3)]),
        client_rtt_s=rtt_s,
        server_rtt_s=np.asarray(server_rtt_s, np.float64),
        blocks=BLOCKS,
        block_bytes=BLOCK_BYTES,
        cache_token_bytes=CACHE_TOKEN_BYTES,
        session_s=SESSION_S,
    )  # fmt: skip


def rates_of(machines: Sequence[Machine]) -> PetalsRates:
    """Return the throughputs that PETALS recorded on these machines."""
    return PetalsRates(
        np.array([m.forward_rps for m in machines]), np.array([m.network_rps for m in machines])
    )


def clustered(client_beside: str = "slice") -> tuple[BlockServers, PetalsRates]:
    """Return the clustered testbed: two A100 and seven slices in a cluster each, the client beside
    the slices or the ``"a100"``; 5 ms within a cluster and 100 ms across."""
    machines = [A100] * 2 + [SLICE] * 7
    group = np.array([0] * 2 + [1] * 7)
    here = 0 if client_beside == "a100" else 1
    near, far = 5e-3, 100e-3
    between = np.where(group[:, None] == group[None, :], near, far)
    return (
        servers_of(machines, np.where(group == here, near, far), between, overhead_s=50e-3),
        rates_of(machines),
    )


def scattered(
    rtt_s: Floats, count: int, *, a100_share: float = 0.2, clients: int = 1, seed: int = 0
) -> tuple[BlockServers, PetalsRates]:
    """Return ``count`` servers at places drawn from those with round trips ``rtt_s``, shape
    (places, places); memory is that of the paper's sweeps, 100 ms overhead a token."""
    rng = np.random.default_rng(seed)
    at = rng.choice(len(rtt_s), count, replace=count > len(rtt_s))
    of = rng.choice(len(rtt_s), clients, replace=clients > len(rtt_s))
    whole = np.zeros(count, np.bool_)
    whole[rng.permutation(count)[: max(round(a100_share * count), 1)]] = True
    larger = {
        True: Machine(86.13e9, *_rest(A100)),
        False: Machine(9.1e9, *_rest(SLICE)),
    }
    machines = [larger[bool(w)] for w in whole]
    between = rtt_s[np.ix_(at, at)]
    return servers_of(machines, rtt_s[np.ix_(of, at)], between, overhead_s=100e-3), rates_of(
        machines
    )


def _rest(machine: Machine) -> tuple[float, tuple[float, float], float, float]:
    return (
        machine.decode_block_s, machine.prefill_block_s, machine.forward_rps, machine.network_rps,
    )  # fmt: skip
