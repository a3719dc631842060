"""KV blocks of a simulated engine, and the prefixes that stay in them."""

from collections import OrderedDict
from collections.abc import Sequence


class KvCache:
    """Blocks are free, private to a sequence, or hold a block of some prefix under its hash.

    Prefix blocks are shared; those that nobody holds stay until their place is needed, the least
    recently used first.
    """

    def __init__(self, blocks: int, block_tokens: int, *, prefix_caching: bool = True) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.prefix_caching = prefix_caching
        self.private = 0
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be had."""
        return self.blocks - self.private - len(self._holders) + len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        """Return the blocks that hold this many tokens."""
        return -(-tokens // self.block_tokens)

    def hits(self, prefix: Sequence[int], tokens: int) -> int:
        """Return how many leading blocks of a prompt are here; the last token is always computed."""
        if not self.prefix_caching:
            return 0
        known = min(len(prefix), (tokens - 1) // self.block_tokens)
        count = 0
        while count < known and prefix[count] in self._holders:
            count += 1
        return count

    def room_beside(self, prefix: Sequence[int], hits: int) -> int:
        """Return the blocks that can be had while the leading ``hits`` are held."""
        return self.available - sum(block in self._idle for block in prefix[:hits])

    def hold(self, prefix: Sequence[int], count: int) -> None:
        """Hold the leading blocks of a prefix."""
        for block in prefix[:count]:
            self._idle.pop(block, None)
            self._holders[block] += 1

    def take(self, count: int) -> None:
        """Take private blocks, in place of idle prefixes if need be."""
        self.private += count
        while self.private + len(self._holders) > self.blocks:
            block, _ = self._idle.popitem(last=False)
            del self._holders[block]

    def share(self, prefix: Sequence[int], held: int, tokens: int) -> int:
        """Turn filled private blocks into blocks of the prefix; return how many are held now."""
        if not self.prefix_caching:
            return held
        known = min(len(prefix), tokens // self.block_tokens)
        while held < known and prefix[held] not in self._holders:
            self._holders[prefix[held]] = 1
            self.private -= 1
            held += 1
        return held

    def release(self, prefix: Sequence[int], held: int, private: int) -> None:
        """Give back a sequence's blocks, the deepest of its prefix first to be replaced."""
        self.private -= private
        for block in reversed(prefix[:held]):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._idle[block] = None
