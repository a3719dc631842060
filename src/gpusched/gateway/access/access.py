"""Who may ask, and how much: API keys and limits by the minute."""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from gpusched.domain.gateway import ClientKey
from gpusched.errors import InputError, unknown_name
from gpusched.gateway.access.token_bucket import TokenBucket
from gpusched.gateway.exchange import Exchange, Refusal

KEY_PREFIX = "gs-"
MAX_KEY_BYTES = 1024
CREDENTIALS = frozenset((b"authorization", b"api-key", b"x-api-key"))
FORWARDED = frozenset((b"forwarded", b"x-forwarded-for", b"x-real-ip"))

MISSING = Refusal(
    401,
    "You didn't provide an API key. Send it in an Authorization header: Authorization: Bearer KEY.",
    headers=((b"www-authenticate", b"Bearer"),),
)
WRONG = Refusal(
    401,
    "Incorrect API key provided.",
    code="invalid_api_key",
    headers=((b"www-authenticate", b'Bearer error="invalid_token"'),),
)
LOG_IN = Refusal(
    401,
    "This page needs an API key, as a bearer token or as the password of any user.",
    headers=((b"www-authenticate", b'Basic realm="gpusched"'),),
)


def new_key() -> tuple[str, str]:
    """Return a key of 256 random bits and its SHA-256 in hexadecimal."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


class _Client:
    """A key's holder with its allowances."""

    __slots__ = ("digest", "key", "name", "priority", "requests", "slo_class", "tokens")

    def __init__(self, key: ClientKey, slo_class: int, now_s: float) -> None:
        self.key = key
        self.name = key.name
        self.digest = bytes.fromhex(key.sha256)
        self.slo_class = slo_class
        self.priority = key.priority
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        if key.requests_per_minute is not None:
            self.requests = TokenBucket.a_minute(key.requests_per_minute, now_s)
        if key.tokens_per_minute is not None:
            self.tokens = TokenBucket.a_minute(key.tokens_per_minute, now_s)


class Access:
    """Knows the clients' keys by their hashes; lets everybody in where there are none.

    A key is looked up by a hash under a secret of this process and then compared in constant time,
    so how long that takes tells nothing about the stored hashes. Headers that held a right key are
    remembered, at most one in each of three ways for each client; wrong ones never.
    """

    def __init__(
        self,
        keys: Sequence[ClientKey] = (),
        classes: Sequence[str] = ("default",),
        *,
        loopback: bool = True,
        now_s: float = 0.0,
    ) -> None:
        """``classes`` of the plan by index; ``loopback``: only this machine reaches the port."""
        self._secret = secrets.token_bytes(32)
        self._by_name: dict[str, _Client] = {}
        self.update(keys, classes, loopback=loopback, now_s=now_s)

    def update(
        self,
        keys: Sequence[ClientKey],
        classes: Sequence[str],
        *,
        loopback: bool = True,
        now_s: float = 0.0,
    ) -> None:
        """Take other keys; who keeps name and limits keeps what is left of the allowances.

        Raises:
            InputError: a key's class is not among ``classes``.
        """
        before, names = self._by_name, tuple(classes)
        clients: dict[str, _Client] = {}
        for key in keys:
            if key.slo_class is not None and key.slo_class not in names:
                problem = unknown_name("SLO class", key.slo_class, names)
                raise InputError(f"gateway.keys: {key.name}: {problem}")
            index = names.index(key.slo_class) if key.slo_class is not None else 0
            client = _Client(key, index, now_s)
            old = before.get(key.name)
            if old is not None and old.key.requests_per_minute == key.requests_per_minute:
                client.requests = old.requests
            if old is not None and old.key.tokens_per_minute == key.tokens_per_minute:
                client.tokens = old.tokens
            clients[key.name] = client
        self._by_name = clients
        self._by_digest = {self._keyed(client.digest): client for client in clients.values()}
        self._known_headers: dict[bytes, _Client] = {}
        self._open = not clients
        self._loopback = loopback

    def check(self, exchange: Exchange, now_s: float) -> Refusal | None:
        """Name the client of an exchange and take one request off its allowance.

        Class and priority of the key become the exchange's, for the reader to override.
        """
        if self._open:
            return None
        client, given = None, False
        for name, value in exchange.headers:
            if name in CREDENTIALS:
                given = True
                client = self._known_headers.get(value) or self._find(name, value)
                break
        if client is None:
            return WRONG if given else MISSING
        exchange.client = client.name
        exchange.slo_class = client.slo_class
        exchange.priority = client.priority
        requests = client.requests
        if requests is not None and not requests.take(1.0, now_s):
            return _limited(client, requests, "requests", 1.0)
        return None

    def charge(self, exchange: Exchange, now_s: float) -> Refusal | None:
        """Take prompt and predicted tokens of an exchange off its client's allowance."""
        client = self._by_name.get(exchange.client)
        if client is None or (bucket := client.tokens) is None:
            return None
        tokens = exchange.prompt_tokens + exchange.predicted_tokens * exchange.choices
        if not bucket.take(tokens, now_s):
            return _limited(client, bucket, "tokens", tokens)
        exchange.charged_tokens = tokens
        return None

    def settle(self, exchange: Exchange) -> None:
        """Correct the charge of an exchange that is over by its true tokens.

        What no engine began to answer costs nothing.
        """
        charged = exchange.charged_tokens
        if not charged:
            return
        exchange.charged_tokens = 0
        client = self._by_name.get(exchange.client)
        if client is None or client.tokens is None:
            return
        answered = exchange.first_byte_s == exchange.first_byte_s and exchange.status < 400
        used = exchange.prompt_tokens + exchange.output_tokens if answered else 0
        client.tokens.give_back(charged - used)

    def look(self, exchange: Exchange) -> Refusal | None:
        """Decide whether whoever asks may see metrics and the status page.

        Without keys, and from this machine where only this machine reaches the port and no proxy
        has passed the request on, anybody may. Others need a key: as a bearer token, or as the
        password that a browser asks for.
        """
        if self._open:
            return None
        if self._loopback and not any(name in FORWARDED for name, _ in exchange.headers):
            return None
        for name, value in exchange.headers:
            if name in CREDENTIALS and (
                self._find(name, value) or self._find(b"x-api-key", _password(value))
            ):
                return None
        return LOG_IN

    def _find(self, header: bytes, value: bytes) -> _Client | None:
        key = value
        if header == b"authorization":
            if value[:7].lower() != b"bearer ":
                return None
            key = value[7:].strip()
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return None
        digest = hashlib.sha256(key).digest()
        client = self._by_digest.get(self._keyed(digest))
        if client is None or not hmac.compare_digest(client.digest, digest):
            return None
        if len(self._known_headers) < 3 * len(self._by_name):
            self._known_headers[value] = client
        return client

    def _keyed(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, digest_size=16, key=self._secret).digest()


def _password(value: bytes) -> bytes:
    """Return the password of a Basic authorization, empty for anything else."""
    if value[:6].lower() != b"basic ":
        return b""
    try:
        return base64.b64decode(value[6:].strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _limited(client: _Client, bucket: TokenBucket, unit: str, asked: float) -> Refusal:
    """Return the refusal of a client that has used up its requests or tokens of the minute."""
    limit = (
        client.key.requests_per_minute if unit == "requests" else client.key.tokens_per_minute
    ) or 0.0
    wait_s = bucket.wait_s(asked)
    of = f"Limit {limit:g}, remaining {max(bucket.level, 0.0):.0f}, requested {asked:g}."
    if wait_s == float("inf"):
        message = f"Request too large for {client.name} on {unit} per min. {of}"
    else:
        message = (
            f"Rate limit reached for {client.name} on {unit} per min. {of} "
            f"Please try again in {wait_s:.3g}s."
        )
    return Refusal(
        429,
        message,
        kind=unit,
        code="rate_limit_exceeded",
        retry_after_s=None if wait_s == float("inf") else wait_s,
        headers=tuple(
            header
            for name, allowance, most in (
                ("requests", client.requests, client.key.requests_per_minute),
                ("tokens", client.tokens, client.key.tokens_per_minute),
            )
            if allowance is not None and most is not None
            for header in _limit_headers(name, allowance, most)
        ),
    )


def _limit_headers(unit: str, bucket: TokenBucket, limit: float) -> list[tuple[bytes, bytes]]:
    """Return the headers by which OpenAI tells a limit, what is left, and when it is whole again."""
    full_s = (bucket.capacity - bucket.level) / bucket.rate_per_s
    return [
        (f"x-ratelimit-limit-{unit}".encode(), b"%d" % limit),
        (f"x-ratelimit-remaining-{unit}".encode(), b"%d" % max(bucket.level, 0.0)),
        (f"x-ratelimit-reset-{unit}".encode(), b"%.3fs" % full_s),
    ]
