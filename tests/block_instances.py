"""Small instances of servers with blocks."""

import numpy as np

from gpusched.timing.chains import BlockServers


def servers(memory, block_s, trip_s, *, blocks, block_bytes=1.0, cache=0.25, prefill=0.0):
    """Servers whose prompts cost ``prefill`` times a decode step."""
    trip = np.atleast_2d(np.asarray(trip_s, float))
    tau = np.asarray(block_s, float)
    n = len(tau)
    known = np.where(np.isfinite(trip), trip, 0.0)
    return BlockServers(
        names=tuple(f"s{j}" for j in range(n)),
        memory_bytes=np.asarray(memory, float),
        decode_block_s=tau,
        prefill_block_s=np.stack([prefill * tau, np.zeros(n)]),
        decode_trip_s=trip,
        prefill_trip_s=np.stack(
            [np.where(np.isfinite(trip), prefill * known, np.inf), np.zeros_like(trip)]
        ),
        client_rtt_s=trip,
        server_rtt_s=np.abs(known[0][:, None] - known[0][None, :]),
        blocks=blocks,
        block_bytes=block_bytes,
        cache_token_bytes=cache,
    )


def toy():
    return servers([6, 3, 3], [1, 1, 2], [4, 1, 1], blocks=4)


def drawn(seed, *, most=4, blocks=(3, 6), clients=1):
    rng = np.random.default_rng(seed)
    n, total = int(rng.integers(2, most + 1)), int(rng.integers(*blocks))
    return servers(
        rng.uniform(0.8, 1.4 * total, n), rng.uniform(0.2, 3, n), rng.uniform(0.5, 6, (clients, n)),
        blocks=total, cache=float(rng.uniform(0.05, 0.4)), prefill=float(rng.uniform(1, 20)),
    )  # fmt: skip
