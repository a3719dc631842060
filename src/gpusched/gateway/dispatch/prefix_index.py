"""Which engine last took a request with a block of a prompt: an index of bounded size.

Prompts are chains of hashes, so a block's hash stands for all that comes before it. The longest
known chain names the engine, as in the simulator. The least recently used blocks are forgotten
first; a lookup and an entry cost one step a block.
"""

from collections import OrderedDict
from collections.abc import Sequence

from gpusched.gateway.exchange import NOWHERE

ENTRY_BYTES = 240
"""Most that an entry takes: a 64-bit key, its place in the table just after the table has grown, and
in the order of use. Held against the interpreter's own count by a test."""


class PrefixIndex:
    """Blocks and the engines that took them last."""

    def __init__(self, limit_bytes: float) -> None:
        self.most_blocks = max(int(limit_bytes / ENTRY_BYTES), 1)
        self._holder_of: OrderedDict[int, int] = OrderedDict()
        self._engine_of: list[int] = []
        """Engine of each holder; an engine that comes back empty is a new holder."""
        self._current: dict[int, int] = {}
        """Present holder of each engine."""

    def __len__(self) -> int:
        return len(self._holder_of)

    def favourite(self, prefix: Sequence[int]) -> int:
        """Return the engine that last took a request with the longest known part of a prefix."""
        return self.known(prefix)[0]

    def known(self, prefix: Sequence[int]) -> tuple[int, int]:
        """Return that engine and the number of blocks of the part."""
        engine, blocks = NOWHERE, 0
        holder_of, engine_of = self._holder_of, self._engine_of
        for block in prefix:
            holder = holder_of.get(block)
            if holder is None or engine_of[holder] < 0:
                break
            engine = engine_of[holder]
            blocks += 1
        return engine, blocks

    def remember(self, prefix: Sequence[int], engine: int) -> None:
        """Enter the blocks of a prefix that an engine has been sent."""
        holder = self._current.get(engine)
        if holder is None:
            holder = self._current[engine] = len(self._engine_of)
            self._engine_of.append(engine)
        holder_of = self._holder_of
        # Last block first: what begins the prompt is the last to be forgotten.
        for block in reversed(prefix):
            holder_of[block] = holder
            holder_of.move_to_end(block)
        while len(holder_of) > self.most_blocks:
            holder_of.popitem(last=False)

    def forget(self, engine: int) -> None:
        """Take it that an engine holds nothing: it has left, or has started anew."""
        holder = self._current.pop(engine, None)
        if holder is not None:
            self._engine_of[holder] = NOWHERE
