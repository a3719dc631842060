"""Servers that each run some transformer blocks of one model: times, memory, what holds what."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SLACK = 1e-9
"""Relative slack of a floor, so that memory that fits exactly fits."""


@dataclass(frozen=True)
class BlockServers:
    """n servers, the C clients that reach them, and the blocks of one model (arXiv 2512.21884).

    A request visits a chain of servers for its prompt and again for every output token but the
    first, and the client carries the activations from each server to the next: a visit costs a trip
    between client and server and the time of the blocks run there. Prompts cost an amount that is
    affine in their tokens.
    """

    names: tuple[str, ...]
    memory_bytes: Floats
    """For blocks and caches, shape (n,)."""
    decode_block_s: Floats
    """One token through one block, shape (n,)."""
    prefill_block_s: Floats
    """A prompt through one block: fixed part and part a token, shape (2, n)."""
    decode_trip_s: Floats
    """A token to the server and back, with all overhead of a visit; inf where there is no way.
    Shape (C, n)."""
    prefill_trip_s: Floats
    """The same for a prompt: fixed part and part a token, shape (2, C, n)."""
    client_rtt_s: Floats
    """Round trip alone, which PETALS' routing measures, shape (C, n)."""
    server_rtt_s: Floats
    """Round trip between servers, shape (n, n)."""
    blocks: int
    block_bytes: float
    cache_token_bytes: float
    """Attention cache of one token in one block."""
    session_s: float = 0.0
    """To open a request's session."""

    @property
    def count(self) -> int:
        """Number of servers."""
        return len(self.memory_bytes)

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.decode_trip_s)

    def prompt_block_s(self, prompt_tokens: float) -> Floats:
        """Return the time of a prompt through one block of each server, shape (n,)."""
        return np.asarray(self.prefill_block_s[0] + self.prefill_block_s[1] * prompt_tokens)

    def prompt_trip_s(self, prompt_tokens: float) -> Floats:
        """Return the trip of a prompt from each client to each server, shape (C, n)."""
        return np.asarray(self.prefill_trip_s[0] + self.prefill_trip_s[1] * prompt_tokens)

    def request_s(self, client: int, prompt_tokens: float, output_tokens: float) -> "VisitTimes":
        """Return what visits of a whole request cost: prompt and all output tokens."""
        steps = output_tokens - 1
        return VisitTimes(
            self.prompt_trip_s(prompt_tokens)[client] + steps * self.decode_trip_s[client],
            self.prompt_block_s(prompt_tokens) + steps * self.decode_block_s,
        )

    def cache_bytes(self, tokens: float) -> float:
        """Return the cache of one request in one block; ``tokens`` are those of prompt and output."""
        return self.cache_token_bytes * tokens

    def cache_room(self, blocks: Ints) -> Ints:
        """Return how many tokens x blocks of cache fit beside ``blocks`` blocks a server."""
        left = self.memory_bytes - self.block_bytes * blocks
        room = np.floor(left / self.cache_token_bytes * (1 + SLACK) + SLACK)
        return np.where(blocks > 0, np.maximum(room, 0), 0).astype(np.int64)


@dataclass(frozen=True)
class VisitTimes:
    """Time of a request at each server: ``trip_s + block_s x blocks run``, both of shape (n,)."""

    trip_s: Floats
    block_s: Floats


@dataclass(frozen=True)
class Placed:
    """Blocks ``first .. first + blocks - 1`` at every server, counted from 0; no blocks: not used."""

    first: Ints
    blocks: Ints
    cache_tokens: Ints
    """Tokens x blocks of attention cache that the server offers."""

    @property
    def end(self) -> Ints:
        """The block after the last one."""
        return self.first + self.blocks

    def coverage(self, blocks: int) -> Ints:
        """Return the number of servers that hold each block, shape (blocks,)."""
        change = np.zeros(blocks + 1, np.int64)
        np.add.at(change, self.first[self.blocks > 0], 1)
        np.add.at(change, self.end[self.blocks > 0], -1)
        return np.cumsum(change)[:blocks]
