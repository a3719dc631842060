"""What is asked of an engine in one go, and what it answers."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stage:
    """A closed batch of equal requests, and single prompts sent into it while all of it decodes."""

    batch: int
    """Requests that decode together; 0 sends the probes to an idle engine."""
    prompt_tokens: int
    output_tokens: int
    probes: tuple[int, ...] = ()
    """Prompt tokens of requests for one token each, sent one after the other."""
    together: bool = False
    """Probes are sent all at once."""
    pace: int = 1
    """Multiplies the iterations between probes: of a fast engine they must be many, so that a client
    can send the next one in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer. Times are of one clock, seconds."""

    prompt_tokens: int
    asked_tokens: int
    sent_s: float
    received_s: Floats
    """Arrivals of parts of the answer."""
    tokens: Ints
    """Tokens received by then, one entry for each of ``received_s``."""

    @property
    def output_tokens(self) -> int:
        """Tokens received."""
        return int(self.tokens[-1]) if len(self.tokens) else 0

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return float(self.received_s[0]) - self.sent_s

    @property
    def e2e_s(self) -> float:
        """Time to last token."""
        return float(self.received_s[-1]) - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Mean time per token after the first; 0 of an answer of one token."""
        later = max(self.output_tokens - int(self.tokens[0]), 1)
        return float(self.received_s[-1] - self.received_s[0]) / later

    def token_times_s(self) -> Floats:
        """Return when each token came, shape (output tokens,); nan where several came together."""
        times = np.full(self.output_tokens, np.nan)
        single = np.diff(self.tokens, prepend=0) == 1
        times[self.tokens[single] - 1] = self.received_s[single]
        return times


@dataclass(frozen=True, slots=True)
class Record:
    """Answers to a stage."""

    stage: Stage
    batch: tuple[Answer, ...]
    probes: tuple[Answer, ...]


class Runner(Protocol):
    """What carries stages out: an engine behind HTTP, or a computed one."""

    def run(self, stage: Stage) -> Record:
        """Return the answers to a stage."""
        ...
