"""Eviction from a prefix cache: which block is worth least.

Blocks are of equal size, so worth per byte is worth per block. ``saving`` is what computing the
block anew would cost: seconds, joules or grams, for only the order matters.
"""

from dataclasses import dataclass

from gpusched.compilation import kernel
from gpusched.policies.parameters import read_policy

LRU, LFU, GDSF, LCS = range(4)


@dataclass(frozen=True, slots=True)
class Eviction:
    """A rule of eviction with its parameters."""

    name: str
    summary: str
    kind: int
    parameters: tuple[str, ...] = ()
    samples: int = 64
    """Blocks looked at where worth falls with time; other rules keep all blocks in order."""


_ALL = (
    Eviction("lru", "least recently used", LRU),
    Eviction("lfu", "fewest hits, then least recently used", LFU),
    Eviction("gdsf", "Greedy-Dual-Size-Frequency: hits x saving, aged by evictions", GDSF),
    Eviction("least-carbon-savings", "hits x saving / time since last use (GreenCache)", LCS,
             ("samples",)),
)  # fmt: skip
EVICTION = {rule.name: rule for rule in _ALL}
_RANGES = {"samples": (1.0, 4096.0)}


def eviction_policy(text: str) -> Eviction:
    """Return the rule that ``text`` names, with the parameters it sets.

    Raises:
        InputError: no such rule or parameter, or a value out of range.
    """
    return read_policy("eviction", text, EVICTION, _RANGES)


@kernel
def worth(kind, hits, saving, used, last_s, now_s, clock):
    """Worth of keeping a block; the least goes first.

    ``used`` counts uses of any block up to the block's last; ``clock`` is the worth of the last block
    evicted. Least-carbon-savings is reconstructed from GreenCache (arXiv 2505.23970): the grid's
    intensity and the flash's embodied carbon are common factors of all blocks.
    """
    if kind == LRU:
        return float(used)
    if kind == LFU:
        return hits + used * 1e-9
    if kind == GDSF:
        return clock + hits * saving
    return hits * saving / max(now_s - last_s, 1e-3)
