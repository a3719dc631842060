"""Where the requests come from: a trace file or a generated profile."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gpusched.domain.document import Section

Arrivals = Literal["poisson", "gamma", "mmpp", "diurnal", "weekly"]


class Rounds(Section):
    """How sessions of several rounds are planned: prefill and decode workers that share rounds."""

    count: Literal["sessions", "rounds"] = "sessions"
    """What meets the objectives: sessions (all first tokens in time, mean gap between tokens), or
    every round for itself."""
    local_share: float | None = Field(default=None, ge=0, le=1)
    """Share of incremental prefills computed on decode workers; found by simulation if not given."""
    shortlist: int = Field(default=48, ge=1, le=1000)
    """Splits to simulate at most."""


class Workload(Section):
    """Requests of a spec. Give ``trace``, or ``profile`` with ``rate_rps``."""

    trace: str | None = None
    """Path of a trace file, as seen from the spec's folder."""
    format: str | None = None
    """Format of the file, where it cannot be told from the content."""
    profile: str | None = None
    """Lengths and sessions of generated requests."""
    rate_rps: float | None = Field(default=None, gt=0, le=1e7)
    """Arrivals a second: of the profile, or of a trace that has lengths only."""
    duration_s: float = Field(default=3600.0, gt=0, le=1e9)
    arrivals: Arrivals = "poisson"
    cv: float = Field(default=2.0, gt=0, le=100)
    """Coefficient of variation of the gaps between gamma arrivals."""
    rate_scale: float = Field(default=1.0, gt=0, le=1e6)
    start_s: float = Field(default=0.0, ge=0)
    end_s: float | None = Field(default=None, gt=0)
    limit: int | None = Field(default=None, ge=1)
    """Keep only the first requests."""
    warmup_s: float = Field(default=0.0, ge=0)
    """Requests that arrive earlier are served but not counted."""
    users: int | None = Field(default=None, ge=1, le=10_000_000)
    """Closed loop: so many users, each sending the next request after an answer."""
    think_s: float = Field(default=0.0, ge=0, le=1e6)
    """Closed loop: pause between an answer and the user's next request."""
    rounds: Rounds | None = None
    """Plan for sessions of several rounds: ``true``, or a section of settings."""

    @property
    def counts_sessions(self) -> bool:
        """Whether objectives are met by sessions, not by single requests."""
        return self.rounds is not None and self.rounds.count == "sessions"

    @field_validator("rounds", mode="before")
    @classmethod
    def _read_switch(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value

    @field_validator("trace", "profile")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if value is not None and (not value.strip() or "\0" in value):
            raise ValueError("must not be empty")
        return value

    @model_validator(mode="after")
    def _check(self) -> "Workload":
        if (self.trace is None) == (self.profile is None):
            raise ValueError(
                "give either trace (a file) or profile (chat, code, agent, tool-agent, assistant, rag, documents, summarize, reason)"
            )
        if self.profile is not None and self.rate_rps is None:
            raise ValueError("a profile needs rate_rps, the arrivals a second")
        if self.rounds is not None and self.users is not None:
            raise ValueError("rounds and users (a closed loop) exclude each other; drop one")
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ValueError(f"end_s ({self.end_s:g}) must be after start_s ({self.start_s:g})")
        if self.profile is not None and self.rate_rps is not None:
            expected = self.rate_rps * self.rate_scale * self.duration_s
            if expected > 1e9:
                raise ValueError(
                    f"about {expected:.3g} requests; lower rate_rps or duration_s (at most 1e9)"
                )
        return self
