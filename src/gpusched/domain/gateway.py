"""What a gateway in front of engines is told: addresses, clients, limits."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gpusched.domain.document import Section

Dialect = Literal["auto", "vllm", "sglang", "llama.cpp", "tgi", "trtllm"]
Seconds = Annotated[float, Field(gt=0, le=1e6)]


class EngineAddress(Section):
    """One live engine: a replica of its pool."""

    url: str
    """Scheme, host and port, such as ``http://127.0.0.1:8101``."""
    dialect: Dialect = "auto"
    """How it names its metrics; found out if not given."""
    weight: float | None = Field(default=None, gt=0, le=1e9)
    """Share of the traffic under weighted routing, relative to the others' (planned flow)."""
    api_key_file: str | None = None
    """Holds the key that the engine asks for."""

    @model_validator(mode="before")
    @classmethod
    def _read_url_alone(cls, values: object) -> object:
        return {"url": values} if isinstance(values, str) else values

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not re.fullmatch(r"https?://(\[[0-9a-fA-F:]+\]|[^/\s:\[\]@?#]+)(:\d{1,5})?/?", url):
            raise ValueError(f"must be http://HOST:PORT or https://HOST:PORT, got {url!r}")
        return url.rstrip("/")


class ClientKey(Section):
    """One API key and what its holder may do."""

    name: str = Field(min_length=1, max_length=200)
    """Stands for the client in metrics and logs."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key, hexadecimal; the key itself is not kept."""
    slo_class: str | None = None
    """Class of its requests where they name none."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Lower goes first."""
    requests_per_minute: float | None = Field(default=None, gt=0, le=1e9)
    tokens_per_minute: float | None = Field(default=None, gt=0, le=1e12)
    """Prompt and expected output tokens."""


class Tls(Section):
    """Files of a certificate chain and its key, PEM."""

    certificate: str
    key: str


class GatewaySettings(Section):
    """Settings of ``gpusched serve``."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes a free one."""
    served_model_name: str | None = None
    """By which clients ask for the plan's model, beside the names that engines give it."""
    tokenizer: str | None = None
    """A tokenizer.json; without one, token counts are estimated and corrected by answers."""
    length_predictor: str = "quantile:0.5"
    """Predicts output tokens, learning from answers."""
    class_header: str = "x-slo-class"
    priority_header: str = "x-priority"
    session_header: str = "x-session-id"
    """Names the conversation that a request belongs to."""
    keys: tuple[ClientKey, ...] = Field(default=(), max_length=100_000)
    """Clients; anybody who reaches the port if empty."""
    tls: Tls | None = None
    max_body_bytes: int = Field(default=16_000_000, ge=1, le=10**9)
    max_header_bytes: int = Field(default=65_536, ge=256, le=10**7)
    read_timeout_s: Seconds = 30.0
    """For a client to send its whole request."""
    connect_timeout_s: Seconds = 2.0
    first_byte_timeout_s: Seconds = 120.0
    """For an engine to begin its answer; then another one is tried."""
    stall_timeout_s: Seconds = 60.0
    """Between two reads of an answer that has begun."""
    max_queued: int = Field(default=4096, ge=0, le=10**7)
    """Requests that admission may hold; more are refused with Retry-After."""
    max_wait_s: Seconds = 60.0
    """For a held request; then it is refused with Retry-After."""
    retries: int = Field(default=2, ge=0, le=16)
    """Other engines tried before a request fails; never after its first byte."""
    hedge_after_s: Seconds | None = None
    """Without a first byte by then, a second engine is asked as well."""
    poll_s: Seconds = 0.5
    """Between two reads of an engine's metrics."""
    eject_after: int = Field(default=3, ge=1, le=1000)
    """Failures in a row that take an engine out of use."""
    readmit_after_s: Seconds = 2.0
    """Before an ejected engine is probed; doubles while it fails, up to 32 times."""
    prefix_index_mb: float = Field(default=64.0, gt=0, le=1e5)
    drain_s: Seconds = 30.0
    """For open answers to end after SIGTERM."""
    request_log: str | None = None
    """Trace of the requests served, readable by ``gpusched simulate --trace``."""
    request_log_mb: float = Field(default=1000.0, gt=0, le=1e6)
    """Size at which the request log is set aside and another begun."""
    request_log_files: int = Field(default=5, ge=1, le=10_000)
    """Full ones kept beside the current one; the oldest go."""
    log_level: Literal["info", "warning", "error", "off"] = "warning"
    """Of JSON lines on standard error: a request is info, a refusal warning, a failure error."""
    log_share: float = Field(default=1.0, ge=0, le=1)
    """Of the requests at level info that get a line."""
    log_prompts: bool = False
    """Whether lines hold the request's messages or prompt."""
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/]+\S*$")
    """Where OpenTelemetry spans go, over HTTP."""
    otlp_share: float = Field(default=1.0, ge=0, le=1)
    """Of the requests that get a span, where the caller has not decided."""

    @model_validator(mode="after")
    def _check_keys(self) -> "GatewaySettings":
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names):
            raise ValueError("keys: two have the same name")
        return self
