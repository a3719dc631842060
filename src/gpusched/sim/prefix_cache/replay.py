"""What a prefix cache of several tiers would hit on a trace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.policies.caching.eviction import eviction_policy
from gpusched.sim.prefix_cache.kernel import blocks_of, replay
from gpusched.timing.iteration import TimingModel
from gpusched.traces.trace import Trace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CacheReplay:
    """Hits and movements of a replay. Tiers run from fast to slow."""

    hit_tokens: Ints
    """Shape (requests, tiers)."""
    hit_ratio: float
    """Share of all prompt tokens that hit in any tier."""
    entered_tokens: Ints
    """Written into each tier, shape (tiers,)."""
    evicted_tokens: int
    """Dropped from the last tier."""
    peak_tokens: Ints
    """Shape (tiers,)."""


def replay_cache(
    trace: Trace,
    tier_tokens: Sequence[int],
    *,
    eviction: str = "lru",
    saving: Floats | None = None,
    resize: Sequence[tuple[float, int]] = (),
    seed: int = 0,
) -> CacheReplay:
    """Replay a trace on a cache whose tiers hold ``tier_tokens`` tokens, fast to slow.

    Requests are taken one after another, in order of arrival; what one computes is cached for the
    next, in the fastest tier, and what has no room there moves down. ``saving`` is the cost of
    computing a block by its depth (see ``block_saving``), which some rules weigh; all blocks alike if
    not given. ``resize`` sets the size of the last tier from given times on.

    Raises:
        InputError: no shared prefixes, no tiers, no such rule.
    """
    prefix = trace.prefix
    if prefix is None or not prefix.n_blocks:
        raise InputError(
            f"{trace.name}: its requests name no shared prefixes, so a cache would never hit; use a "
            "trace with block hashes (such as Mooncake's) or a profile with sessions"
        )
    if not tier_tokens or min(tier_tokens) < 0:
        raise InputError(f"tier_tokens: give one size or more, none negative, got {tier_tokens}")
    rule = eviction_policy(eviction)
    depth, parent = _tree(prefix.offsets, prefix.block_ids, prefix.n_blocks)
    worth = np.ones(int(depth.max()) + 1) if saving is None else np.asarray(saving, np.float64)
    if len(worth) <= depth.max():
        worth = np.concatenate((worth, np.full(int(depth.max()) + 1 - len(worth), worth[-1])))
    size = prefix.block_tokens
    blocks = blocks_of(parent, depth, np.array(tier_tokens, np.int64) // size, worth, seed)
    hit = np.zeros((len(trace), len(tier_tokens)), np.int64)
    peak = np.zeros(len(tier_tokens), np.int64)
    evicted = replay(
        blocks, trace.arrival_s, trace.prompt_tokens.astype(np.int64), prefix.offsets,
        prefix.block_ids.astype(np.int64), size,
        np.array([time_s for time_s, _ in resize], np.float64),
        np.array([tokens // size for _, tokens in resize], np.int64),
        rule.kind, rule.samples, hit, peak,
    )  # fmt: skip
    ratio = float(hit.sum() / trace.prompt_tokens.sum())
    return CacheReplay(hit, ratio, blocks.entered * size, int(evicted) * size, peak * size)


def block_saving(timing: TimingModel, block_tokens: int, blocks: int) -> Floats:
    """Return the seconds of prefill that a cached block saves, by its depth, shape (blocks,)."""
    return np.array([timing.prefill_s(block_tokens, i * block_tokens) for i in range(blocks)])


def _tree(offsets: Ints, block_ids: NDArray[np.int32], n_blocks: int) -> tuple[Ints, Ints]:
    lengths = np.diff(offsets)
    at = np.arange(len(block_ids)) - np.repeat(offsets[:-1], lengths)
    depth = np.zeros(n_blocks, np.int64)
    depth[block_ids] = at
    parent = np.full(n_blocks, -1, np.int64)
    inner = np.flatnonzero(at > 0)
    parent[block_ids[inner]] = block_ids[inner - 1]
    return depth, parent
