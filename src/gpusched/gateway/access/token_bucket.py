"""Allowance that refills at a steady rate."""

INFINITE_S = float("inf")


class TokenBucket:
    """Holds up to ``capacity`` tokens and gains ``rate_per_s``; begins full.

    In any window of T seconds it hands out at most ``capacity + rate_per_s * T``, what was given
    back not counted. It may be overdrawn by a correction, and then hands out nothing until refilled.
    """

    __slots__ = ("at_s", "capacity", "level", "rate_per_s")

    def __init__(self, capacity: float, rate_per_s: float, now_s: float = 0.0) -> None:
        self.capacity = capacity
        self.rate_per_s = rate_per_s
        self.level = capacity
        self.at_s = now_s

    @classmethod
    def a_minute(cls, tokens: float, now_s: float = 0.0) -> "TokenBucket":
        """Return one that holds and gains ``tokens`` a minute, at least one whole token."""
        return cls(max(tokens, 1.0), tokens / 60.0, now_s)

    def refill(self, now_s: float) -> float:
        """Return the level at that time; an earlier time than the last changes nothing."""
        if now_s > self.at_s:
            level = self.level + (now_s - self.at_s) * self.rate_per_s
            self.level = level if level < self.capacity else self.capacity
            self.at_s = now_s
        return self.level

    def take(self, tokens: float, now_s: float) -> bool:
        """Take tokens if there are as many."""
        if self.refill(now_s) < tokens:
            return False
        self.level -= tokens
        return True

    def wait_s(self, tokens: float) -> float:
        """Return the time from the last refill until there are as many; infinite above capacity."""
        if tokens > self.capacity:
            return INFINITE_S
        return max(tokens - self.level, 0.0) / self.rate_per_s

    def give_back(self, tokens: float) -> None:
        """Put tokens back; a negative number takes them, if need be into debt."""
        self.level = min(self.level + tokens, self.capacity)
