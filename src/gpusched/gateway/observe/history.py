"""The last minutes of a gateway, second by second, for its status page."""

from collections import deque
from typing import Any

from gpusched.gateway.exchange import Exchange
from gpusched.gateway.observe.latency import Latency

SECONDS = 300
SAMPLES = 1024
"""Latencies kept of one second, the latest."""
REFUSALS = 20


class Sample:
    """The latest values of one second."""

    __slots__ = ("_next", "_values")

    def __init__(self) -> None:
        self._values: list[float] = []
        self._next = 0

    def add(self, value: float) -> None:
        """Take in a value."""
        if self._next < SAMPLES:
            self._values.append(value)
        else:
            self._values[self._next % SAMPLES] = value
        self._next += 1

    def quantiles(self, *shares: float) -> list[float | None]:
        """Return quantiles by nearest rank, None without a value, and forget the values."""
        values = sorted(self._values)
        self._values, self._next = [], 0
        if not values:
            return [None] * len(shares)
        return [values[min(int(share * len(values)), len(values) - 1)] for share in shares]


class History:
    """Sums of the current second and rows of the seconds before."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self.rows: deque[dict[str, Any]] = deque(maxlen=SECONDS)
        self.refusals: deque[dict[str, Any]] = deque(maxlen=REFUSALS)
        self._ttft, self._tpot = Sample(), Sample()
        self.update(classes)
        self._clear()

    def update(self, classes: tuple[str, ...]) -> None:
        """Take the classes of another plan."""
        self.classes = classes
        self._met, self._missed = [0] * len(classes), [0] * len(classes)

    def _clear(self) -> None:
        self.answered = self.refused = self.failed = self.cancelled = self.output_tokens = 0
        self._met, self._missed = [0] * len(self.classes), [0] * len(self.classes)

    def ended(self, exchange: Exchange, latency: Latency, met: bool | None) -> None:
        """Count an exchange that is over."""
        outcome = exchange.outcome
        if outcome == "ok":
            self.answered += 1
            self.output_tokens += exchange.output_tokens
            ttft_s, tpot_s, _ = latency
            if ttft_s == ttft_s:
                self._ttft.add(ttft_s)
                if tpot_s == tpot_s:
                    self._tpot.add(tpot_s)
        elif outcome == "refused":
            self.refused += 1
        elif outcome == "failed":
            self.failed += 1
        else:
            self.cancelled += 1
        if met is not None:
            (self._met if met else self._missed)[exchange.slo_class] += 1

    def note_refusal(self, exchange: Exchange, time_s: float) -> None:
        """Keep what the page shows of a refused or failed request; alike ones in a row together."""
        refusal = exchange.refusal
        if refusal is not None:
            what = (exchange.client, refusal.status, refusal.code or refusal.kind)
        else:
            what = (exchange.client, exchange.status, f"{exchange.outcome} by the engine")
        last = self.refusals[-1] if self.refusals else None
        if last is None or (last["client"], last["status"], last["reason"]) != what:
            last = dict(zip(("client", "status", "reason"), what, strict=True), count=0)
            self.refusals.append(last)
        last["count"] += 1
        last["time_s"] = time_s

    def tick(self, time_s: float, seconds: float, held: int, open_requests: int) -> None:
        """Close the current second, which took ``seconds``."""
        ttft_p50, ttft_p95 = self._ttft.quantiles(0.5, 0.95)
        (tpot_p50,) = self._tpot.quantiles(0.5)
        seconds = max(seconds, 1e-3)
        self.rows.append(
            {
                "time_s": round(time_s, 3),
                "requests_per_s": self.answered / seconds,
                "tokens_per_s": self.output_tokens / seconds,
                "refused": self.refused,
                "failed": self.failed,
                "cancelled": self.cancelled,
                "ttft_p50_s": ttft_p50,
                "ttft_p95_s": ttft_p95,
                "tpot_p50_s": tpot_p50,
                "held": held,
                "open": open_requests,
                "met": self._met,
                "missed": self._missed,
            }
        )
        self._clear()
