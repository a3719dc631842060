"""A request on its way through the gateway, and who has a say in it.

One exchange passes, on one thread, with the time as an argument::

    wire        reads it from the client            (bytes in, bytes out, nothing decided)
    access      key, rate limits                    -> Refusal or goes on
    reading     model, tokens, class, prefix        -> Refusal or goes on
    dispatcher  holds it, sends it, refuses it      -> calls the relay
    relay       carries it to an engine and back    -> tells the dispatcher and the recorder
    recorder    metrics, spans, request log
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

OTHER, CHAT, COMPLETION = range(3)
"""What is asked for: another path of an engine, chat completions, completions."""

NOWHERE = -1
"""In place of an engine's index."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served, in OpenAI's terms."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    """OpenAI's ``type``: ``invalid_request_error``, ``authentication_error``,
    ``rate_limit_error``, ``overloaded_error``, ``api_error``."""
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    """Sent as Retry-After, rounded up to whole seconds."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """More headers of the answer."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and what has become of it. Times are of the event loop's clock, seconds."""

    number: int
    method: bytes
    target: bytes
    """Path and query as the client wrote them."""
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
    body: bytes
    received_s: float

    # Read from it.
    kind: int = OTHER
    model: str = ""
    stream: bool = False
    choices: int = 1
    prompt_bytes: int = 0
    """Of the prompt's text; 0 where it came as token ids."""
    prompt_tokens: int = 0
    """Counted, or estimated until the engine has counted."""
    max_tokens: int | None = None
    predicted_tokens: int = 0
    slo_class: int = 0
    """Index among the plan's classes."""
    priority: int = 0
    """Lower goes first."""
    client: str = ""
    """Name of its key."""
    session: bytes = b""
    """What the client calls the conversation; empty if it does not say."""
    prefix: tuple[int, ...] = ()
    """Hashes of the prompt's leading blocks, alike within one process only."""
    charged_tokens: int = 0
    """Taken off the client's allowance, to be corrected when it is over."""

    # Decided and observed.
    branch: str = ""
    """What decided on the engine: ``affinity``, ``least-tokens``, ``only`` and so on."""
    engine: int = NOWHERE
    prefill_engine: int = NOWHERE
    """Where its prefill ran, if elsewhere."""
    tried: list[int] = field(default_factory=list)
    """Engines that failed it."""
    hedged: bool = False
    """Whether a second engine was asked as well."""
    refusal: Refusal | None = None
    """With which it was refused."""
    decision_s: float = float("nan")
    """Time that admission and routing took to decide, waiting not counted."""
    sent_s: float = float("nan")
    first_byte_s: float = float("nan")
    """First byte of the answer's body."""
    last_byte_s: float = float("nan")
    status: int = 0
    """Of the answer; 0 while there is none."""
    events: int = 0
    """Server-sent events relayed."""
    answer_bytes: int = 0
    output_tokens: int = 0
    """By the engine's count where it gives one, else the events that carry tokens."""
    cached_tokens: int = 0
    outcome: str = "open"
    """``open``, ``ok``, ``refused``, ``failed``, ``cancelled``."""
    context: object = None
    """The recorder's own, such as a span."""
    carrier: object = None
    """The relay's own."""

    def header(self, name: bytes) -> bytes | None:
        """Return the first header of that lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Access(Protocol):
    """Who may ask, and how much."""

    def check(self, exchange: Exchange, now_s: float) -> Refusal | None:
        """Name the client of an exchange, or refuse it."""
        ...

    def charge(self, exchange: Exchange, now_s: float) -> Refusal | None:
        """Take the tokens of an exchange that has been read off its client's allowance."""
        ...


class Reading(Protocol):
    """What a request asks for."""

    def read(self, exchange: Exchange) -> Refusal | None:
        """Fill in what the dispatcher needs from path, headers and body; the body is left as it is."""
        ...

    def learn(self, exchange: Exchange) -> None:
        """Take in the counts of an answer that has ended."""
        ...


class Relay(Protocol):
    """Carries exchanges; the dispatcher calls it."""

    def send(self, exchange: Exchange, engine: int, prefill: int = NOWHERE) -> None:
        """Send an exchange to an engine, its prefill first to another if given."""
        ...

    def hedge(self, exchange: Exchange, engine: int) -> None:
        """Ask a second engine as well; the first to answer is heard."""
        ...

    def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer an exchange that no engine has begun to answer."""
        ...


class EngineAt(Protocol):
    """Where an engine is."""

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        ...

    @property
    def api_key(self) -> bytes | None:
        """Which it asks for."""
        ...


class Dispatcher(Protocol):
    """Admission and routing. Everything here returns at once."""

    @property
    def engines(self) -> Sequence[EngineAt]:
        """All engines by index, those that have left included."""
        ...

    def body_for(self, exchange: Exchange, engine: int) -> bytes:
        """Return the body that an engine gets: the exchange's own wherever possible."""
        ...

    def submit(self, exchange: Exchange, now_s: float) -> None:
        """Send, hold or refuse a request through the relay, now or at a later event."""
        ...

    def began(self, exchange: Exchange, engine: int, now_s: float) -> None:
        """Take in that an engine has given the first byte of an answer, or, where prefill has an
        engine of its own, that this engine's part is done."""
        ...

    def ended(self, exchange: Exchange, now_s: float) -> None:
        """Take in that an exchange is over, however: answered, refused, failed, cancelled."""
        ...

    def failed(self, exchange: Exchange, engine: int, now_s: float, reason: str) -> bool:
        """Take in that an engine failed a request before its first byte; return whether another one
        has been or will be asked. ``reason``: ``connect``, ``closed``, ``timeout``, ``status`` (an error of
        the engine's), ``busy`` (429 or 503: it takes no more work)."""
        ...

    def left(self, exchange: Exchange, engine: int, now_s: float) -> None:
        """Take in that the slower engine of a hedged pair has been cancelled."""
        ...

    def load_report(self, engine: int, header: bytes, now_s: float) -> None:
        """Take in an ORCA load report of an answer's headers."""
        ...


@dataclass(slots=True)
class EngineStatus:
    """One engine, as metrics and status page show it."""

    url: str
    pool: str = ""
    role: str = "mixed"
    models: tuple[str, ...] = ()
    """Names by which it may be asked."""
    up: bool = False
    ejected: bool = False
    ejections: int = 0
    """Since the start."""
    outstanding: int = 0
    """Requests sent and not over."""
    outstanding_tokens: float = 0.0
    running: float | None = None
    """Requests in its batch, as it reports."""
    waiting: float | None = None
    """Requests in its queue, as it reports."""
    kv_usage: float | None = None
    """Share of its KV cache in use, as it reports."""


class Fleet(Protocol):
    """What can be seen of the engines and of the requests held; asked once a second."""

    def statuses(self) -> Sequence[EngineStatus]:
        """Return the engines in the order of their indices; an index is never given twice."""
        ...

    def held(self) -> int:
        """Return the number of requests that admission holds."""
        ...


class Recorder(Protocol):
    """Sees every exchange when it opens and when it is over."""

    def opened(self, exchange: Exchange, now_s: float) -> None:
        """Take in a request that has arrived."""
        ...

    def ended(self, exchange: Exchange, now_s: float) -> None:
        """Take in an exchange that is over."""
        ...
