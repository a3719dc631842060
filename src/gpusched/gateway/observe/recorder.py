"""Sees every exchange: metrics, history, log lines, spans, allowances."""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol

from gpusched import __version__
from gpusched.domain.plan import Plan
from gpusched.gateway.exchange import NOWHERE, EngineStatus, Exchange, Fleet
from gpusched.gateway.observe.history import History
from gpusched.gateway.observe.latency import NONE, latency_of
from gpusched.gateway.observe.line_file import LineFile
from gpusched.gateway.observe.metrics import Metrics, resident_bytes
from gpusched.gateway.observe.request_log import LEVELS, Lines, event_line, level_of
from gpusched.gateway.observe.telemetry import Telemetry

TICK_S = 1.0
SWITCH_S = 0.001
LOOK_AGAIN_S = 0.1
"""Between two looks for a model that is not known yet."""


class Settling(Protocol):
    """Corrects the charge of an exchange that is over."""

    def settle(self, exchange: Exchange) -> None:
        """Give back what was charged too much, or take the rest."""
        ...


class Recorder:
    """Keeps what can be seen of a gateway, on the event loop's thread.

    Counting is done as an exchange ends, with files and sockets left to threads; once a second
    ``tick`` looks at the engines and closes the second for the status page.
    """

    def __init__(
        self,
        plan: Plan,
        fleet: Fleet,
        access: Settling | None = None,
        *,
        block_tokens: int = 64,
    ) -> None:
        """``block_tokens`` is the length of the blocks of ``Exchange.prefix``, about.

        Raises:
            InputError: a log cannot be written, or a library is missing.
        """
        settings = plan.gateway
        self._fleet, self._access = fleet, access
        self.statuses: Sequence[EngineStatus] = fleet.statuses()
        self._open: set[Exchange] = set()
        self._offset_s = time.time() - time.monotonic()
        self._ticked_s = self._looked_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._ejected: dict[str, tuple[bool, bool]] = {}
        self.metrics = Metrics(plan.slo)
        self.history = History(plan.slo.names)
        self.update(plan)
        self._lines = Lines(self.engine_name, plan.slo.names, self._offset_s, block_tokens)
        self._level = LEVELS[settings.log_level] if settings else LEVELS["warning"]
        self._share = settings.log_share if settings else 1.0
        self._shown = 0.0
        self._prompts = bool(settings and settings.log_prompts)
        self._log = LineFile(sys.stderr.fileno()) if self._level < LEVELS["off"] else None
        self._request_log: LineFile | None = None
        if settings and settings.request_log:
            self._request_log = LineFile(
                settings.request_log,
                max_bytes=int(settings.request_log_mb * 1e6),
                keep=settings.request_log_files,
            )
        self._telemetry: Telemetry | None = None
        if settings and settings.otlp_endpoint:
            self._telemetry = Telemetry(
                settings.otlp_endpoint,
                self.engine_name,
                self._offset_s,
                share=settings.otlp_share,
            )

    def update(self, plan: Plan) -> None:
        """Take another plan: its model, classes and policies; logs stay where they are."""
        settings = plan.gateway
        own = settings.served_model_name if settings else None
        self._models = tuple(dict.fromkeys(name for name in (own, plan.model) if name))
        self._plan = {
            "model": own or plan.model,
            "admission": str(plan.admission),
            "routing": str(plan.routing),
            "objectives": {name: str(slo) for name, slo in plan.slo.classes.items()},
        }
        if plan.slo.names != self.history.classes:
            self.history.update(plan.slo.names)
            self._lines.classes = plan.slo.names
        self.metrics.update(plan.slo)
        self._know()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tick once a second from now on."""
        if self._telemetry is not None:
            # Encoding a span holds Python's lock for long; let the loop have it back sooner.
            sys.setswitchinterval(SWITCH_S)
        self._ticked_s = time.monotonic()
        self._timer = loop.call_later(TICK_S, self._tick_again, loop)

    def close(self) -> None:
        """Write and export what waits, for a few seconds at most."""
        if self._timer is not None:
            self._timer.cancel()
        for part in (self._telemetry, self._request_log, self._log):
            if part is not None:
                part.close()

    def opened(self, exchange: Exchange, now_s: float) -> None:
        """Take in a request that has arrived, and place it in its caller's trace."""
        self._open.add(exchange)
        if self._telemetry is not None:
            self._telemetry.opened(exchange)

    def ended(self, exchange: Exchange, now_s: float) -> None:
        """Take in an exchange that is over."""
        self._open.discard(exchange)
        if exchange.last_byte_s != exchange.last_byte_s:
            exchange.last_byte_s = now_s
        if exchange.slo_class >= len(self.history.classes):
            exchange.slo_class = 0
        if exchange.charged_tokens and self._access is not None:
            self._access.settle(exchange)
        # What the gateway answers itself has no latency worth comparing, and its samples have theirs.
        latency = NONE if exchange.engine == NOWHERE else latency_of(exchange)
        if exchange.model not in self.metrics.models and exchange.engine != NOWHERE:
            self._look(now_s)
        met = self.metrics.ended(exchange, latency)
        self.history.ended(exchange, latency, met)
        fine = exchange.outcome == "ok" and exchange.status < 400
        if exchange.outcome in ("refused", "failed"):
            self.history.note_refusal(exchange, now_s + self._offset_s)
        if self._request_log is not None or self._level == 0 or not fine:
            self._write(exchange, latency, met)
        if self._telemetry is not None:
            self._telemetry.ended(exchange, latency)

    def log(self, level: str, event: str, **fields: Any) -> None:
        """Write something that happened as a line of the log."""
        if self._log is not None and LEVELS[level] >= self._level:
            self._log.write(event_line(level, event, fields))

    def engine_name(self, index: int) -> str:
        """Return an engine's address."""
        if index >= len(self.statuses):
            self.statuses = self._fleet.statuses()
        return self.statuses[index].url if index < len(self.statuses) else f"engine {index}"

    def tick(self, now_s: float) -> None:
        """Close the current second."""
        self.statuses = self._fleet.statuses()
        self._know()
        self._note_ejections()
        self.history.tick(
            now_s + self._offset_s, now_s - self._ticked_s, self._fleet.held(), len(self._open)
        )
        self._ticked_s = now_s

    def metrics_text(self) -> str:
        """Return the metrics in Prometheus' format."""
        self.statuses = self._fleet.statuses()
        return self.metrics.text(
            self.statuses, self._fleet.held(), len(self._open), self._open_streams(),
            {
                "log_lines": self._log.dropped if self._log else 0,
                "request_log_lines": self._request_log.dropped if self._request_log else 0,
                "spans": self._telemetry.dropped if self._telemetry else 0,
            },
        )  # fmt: skip

    def status(self) -> dict[str, object]:
        """Return what the status page shows."""
        totals = self.metrics.engines
        problem = self._request_log.problem if self._request_log else None
        return {
            "version": __version__,
            "now_s": time.time(),
            "started_s": self.metrics.started_s,
            "plan": self._plan,
            "held": self._fleet.held(),
            "open": len(self._open),
            "streams": self._open_streams(),
            "rss_bytes": resident_bytes(),
            "cpu_s": time.process_time(),
            "problems": [f"request log: {problem}"] if problem else [],
            "classes": self.history.classes,
            "history": list(self.history.rows),
            "refusals": list(self.history.refusals),
            "engines": [
                {
                    "url": status.url, "pool": status.pool, "role": status.role,
                    "up": status.up, "ejected": status.ejected, "ejections": status.ejections,
                    "outstanding": status.outstanding,
                    "running": status.running if status.up else None,
                    "waiting": status.waiting if status.up else None,
                    "kv_usage": status.kv_usage if status.up else None,
                    "requests": totals[i].requests if i in totals else 0,
                    "failures": totals[i].failures if i in totals else 0,
                }
                for i, status in enumerate(self.statuses)
            ],
        }  # fmt: skip

    def _tick_again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(TICK_S, self._tick_again, loop)
        self.tick(time.monotonic())

    def _open_streams(self) -> int:
        return sum(e.stream and e.first_byte_s == e.first_byte_s for e in self._open)

    def _look(self, now_s: float) -> None:
        """Ask for the engines' models before the next tick, but not often."""
        if now_s >= self._looked_s + LOOK_AGAIN_S:
            self._looked_s = now_s
            self.statuses = self._fleet.statuses()
            self._know()

    def _know(self) -> None:
        names = dict.fromkeys(self._models)
        for status in self.statuses:
            names.update(dict.fromkeys(status.models))
        self.metrics.know(tuple(names))

    def _note_ejections(self) -> None:
        for status in self.statuses:
            state = (status.up, status.ejected)
            before = self._ejected.get(status.url)
            if before == state:
                continue
            self._ejected[status.url] = state
            usable = status.up and not status.ejected
            if before is None and usable:
                continue
            self.log(
                "info" if usable else "warning",
                "engine back" if usable else "engine ejected" if status.ejected else "engine down",
                engine=status.url,
            )

    def _write(self, exchange: Exchange, latency: Any, met: bool | None) -> None:
        row = self._lines.row(exchange, latency, met)
        if self._request_log is not None and exchange.engine != NOWHERE:
            self._request_log.write(self._lines.with_prefix(row, exchange))
        if self._log is None:
            return
        level = level_of(exchange)
        if LEVELS[level] < self._level:
            return
        if level == "info" and self._share < 1:
            self._shown += self._share
            if self._shown < 1:
                return
            self._shown -= 1
        self._log.write(self._lines.message(exchange, row, level, prompts=self._prompts))
