"""Which engine a request has an affinity with: by its prompt's prefix, or by its session."""

from gpusched.gateway.dispatch.prefix_index import PrefixIndex
from gpusched.gateway.exchange import NOWHERE, Exchange
from gpusched.policies.routing import choice

SESSION_SHARE = 0.125
"""Part of the memory that remembers sessions."""

BY_PREFIX = (choice.PREFIX_AFFINITY, choice.CUSTOM)
"""Kinds of routing that look at prefixes."""


class Affinities:
    """What engines hold, as far as it follows from what they were sent."""

    def __init__(self, limit_bytes: float) -> None:
        self.prefixes = PrefixIndex((1.0 - SESSION_SHARE) * limit_bytes)
        self.sessions = PrefixIndex(SESSION_SHARE * limit_bytes)

    def of(self, kind: int, exchange: Exchange) -> int:
        """Return the engine that a kind of routing would prefer, or -1."""
        if kind == choice.SESSION_AFFINITY:
            session = exchange.session
            return self.sessions.favourite((hash(session),)) if session else NOWHERE
        if kind in BY_PREFIX and exchange.prefix:
            return self.prefixes.favourite(exchange.prefix)
        return NOWHERE

    def remember(self, kind: int, exchange: Exchange, engine: int, *, prefixes: bool) -> None:
        """Note where a request goes; its prefix if the routing looks at it, or ``prefixes`` says."""
        if kind == choice.SESSION_AFFINITY and exchange.session:
            self.sessions.remember((hash(exchange.session),), engine)
        if exchange.prefix and (prefixes or kind in BY_PREFIX):
            self.prefixes.remember(exchange.prefix, engine)

    def cached(self, exchange: Exchange) -> tuple[int, int]:
        """Return the engine that holds most of a prompt's prefix, or -1, and about how many
        tokens."""
        if not exchange.prefix:
            return NOWHERE, 0
        engine, blocks = self.prefixes.known(exchange.prefix)
        return engine, exchange.prompt_tokens * blocks // len(exchange.prefix)

    def forget(self, engine: int) -> None:
        """Take it that an engine holds nothing."""
        self.prefixes.forget(engine)
        self.sessions.forget(engine)
