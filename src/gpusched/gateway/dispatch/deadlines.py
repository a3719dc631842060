"""Many deadlines of one length behind a single timer."""

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")


class Timer(Protocol):
    """What an event loop gives for a call that is due later."""

    def cancel(self) -> None:
        """Let the call not happen."""
        ...


CallAt = Callable[..., Timer]
"""``call_at(when_s, function, *arguments)``, as an event loop has it."""


class Deadlines(Generic[Item]):
    """Calls ``due(item, now_s)`` for items ``delay_s`` after they were added, unless ``lapsed``.

    Items are added in order of time, so the first is always the next that is due.
    """

    def __init__(
        self,
        call_at: CallAt,
        delay_s: float,
        lapsed: Callable[[Item], bool],
        due: Callable[[Item, float], None],
    ) -> None:
        self._call_at = call_at
        self.delay_s = delay_s
        self._lapsed, self._due = lapsed, due
        self._items: deque[tuple[float, Item]] = deque()
        self._timer: Any = None
        self._armed_s = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: Item, now_s: float) -> None:
        """Start an item's time."""
        items = self._items
        # Items that need no deadline any more go as others come, so that they do not pile up.
        while items and self._lapsed(items[0][1]):
            items.popleft()
        items.append((now_s + self.delay_s, item))
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._items:
            self._armed_s = self._items[0][0]
            self._timer = self._call_at(self._armed_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        items, now_s = self._items, self._armed_s
        while items and (items[0][0] <= now_s or self._lapsed(items[0][1])):
            item = items.popleft()[1]
            if not self._lapsed(item):
                self._due(item, now_s)
        self._arm()
