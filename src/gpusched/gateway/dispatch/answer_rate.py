"""How fast answers end, and so how long those that wait will have to."""

import math

WINDOW_S = 10.0
"""Over which the rate is averaged."""
LONGEST_S = 60.0


class AnswerRate:
    """Answers a second, older ones counting less."""

    def __init__(self) -> None:
        self._count = 0.0
        self._last_s = -math.inf

    def count(self, now_s: float) -> None:
        """Count an answer that has ended."""
        self._count = self._decayed(now_s) + 1.0
        self._last_s = now_s

    def wait_s(self, ahead: int, now_s: float) -> float:
        """Return the seconds until so many requests are served, from 1 to ``LONGEST_S``."""
        rate = self._decayed(now_s) / WINDOW_S
        return min(max((ahead + 1) / rate, 1.0), LONGEST_S) if rate > 0.0 else 1.0

    def _decayed(self, now_s: float) -> float:
        if self._last_s == -math.inf:
            return 0.0
        return self._count * math.exp(min(self._last_s - now_s, 0.0) / WINDOW_S)
