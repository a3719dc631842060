"""What a gateway has done, as Prometheus metrics."""

import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from gpusched import __version__
from gpusched.domain.slo import SloClasses
from gpusched.gateway.exchange import NOWHERE, EngineStatus, Exchange
from gpusched.gateway.observe.exposition import Family, Histogram, histograms, labels, plain
from gpusched.gateway.observe.latency import Latency, judge_of

TTFT_EDGES = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
"""vLLM's, as the two below, so that dashboards overlay."""
TPOT_EDGES = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
E2E_EDGES = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
DECISION_EDGES = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 0.01, 0.1, 1.0,
)  # fmt: skip
MAX_MODELS = 200
OTHER = "other"


class Requests:
    """Requests of one model and class."""

    __slots__ = (
        "cached_tokens",
        "e2e",
        "output_tokens",
        "prompt_tokens",
        "queue",
        "tpot",
        "ttft",
    )

    def __init__(self) -> None:
        self.ttft, self.tpot = Histogram(TTFT_EDGES), Histogram(TPOT_EDGES)
        self.e2e, self.queue = Histogram(E2E_EDGES), Histogram(E2E_EDGES)
        self.prompt_tokens = self.output_tokens = self.cached_tokens = 0


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Verdicts:
    """Requests that met their objective and that missed it."""

    __slots__ = ("met", "missed")

    def __init__(self) -> None:
        self.met = self.missed = 0


class EngineTotals:
    """What one engine has done for this gateway."""

    __slots__ = ("failures", "output_tokens", "requests", "tpot_s", "tpots", "ttft_s", "ttfts")

    def __init__(self) -> None:
        self.requests = self.failures = self.output_tokens = self.ttfts = self.tpots = 0
        self.ttft_s = self.tpot_s = 0.0


class Metrics:
    """Counts exchanges that are over. Labels come from the plan and the engines, never a client."""

    def __init__(self, slo: SloClasses, models: Sequence[str] = ()) -> None:
        self.started_s = time.time()
        self.know(models)
        self.update(slo)
        self.requests: Family[Requests] = Family(("model", "slo_class"), Requests, 1000)
        self.outcomes: Family[Count] = Family(("model", "slo_class", "outcome"), Count, 5000)
        self.verdicts: Family[Verdicts] = Family(("slo_class", "policy"), Verdicts, 5000)
        self.refusals: Family[Count] = Family(("reason",), Count, 64)
        self.engines: dict[int, EngineTotals] = {}
        self.decision = Histogram(DECISION_EDGES)
        self.retries = self.hedges = 0
        self._paths: dict[tuple[str, int, str, str], tuple[Requests, Count, Verdicts]] = {}

    def update(self, slo: SloClasses) -> None:
        """Take the classes of another plan."""
        self.classes = slo.names
        self._judges = [judge_of(bounds) for bounds in slo.classes.values()]
        self._paths = {}

    def know(self, models: Sequence[str]) -> None:
        """Take the models that have series of their own; all others are ``other``."""
        self.models = {name: name for name in models[:MAX_MODELS]} | {"": ""}

    def ended(self, exchange: Exchange, latency: Latency) -> bool | None:
        """Count an exchange that is over; return whether it met its objective."""
        model = self.models.get(exchange.model, OTHER)
        outcome = exchange.outcome
        if outcome == "ok" and exchange.status >= 400:
            outcome = "error"
        index = exchange.slo_class
        path = self._paths.get((model, index, exchange.branch, outcome))
        if path is None:
            path = self._path(model, index, exchange.branch, outcome)
        requests, count, verdicts = path
        count.value += 1
        ttft_s, tpot_s, e2e_s = latency
        if e2e_s == e2e_s:
            requests.e2e.observe(e2e_s)
            requests.prompt_tokens += exchange.prompt_tokens
            requests.output_tokens += exchange.output_tokens
            requests.cached_tokens += exchange.cached_tokens
            if ttft_s == ttft_s:
                requests.ttft.observe(ttft_s)
                if tpot_s == tpot_s:
                    requests.tpot.observe(tpot_s)
        sent_s = exchange.sent_s
        if sent_s == sent_s:
            requests.queue.observe(sent_s - exchange.received_s)
        if (decision_s := exchange.decision_s) == decision_s:
            self.decision.observe(decision_s)
        if exchange.engine != NOWHERE:
            self._count_engine(exchange, ttft_s, tpot_s)
        if exchange.tried:
            self._count_failures(exchange)
        if exchange.hedged:
            self.hedges += 1
        if (refusal := exchange.refusal) is not None:
            self.refusals.at(refusal.code or refusal.kind).value += 1
        met = self._judges[index](exchange, latency)
        if met is not None:
            if met:
                verdicts.met += 1
            else:
                verdicts.missed += 1
        return met

    def _path(
        self, model: str, index: int, branch: str, outcome: str
    ) -> tuple[Requests, Count, Verdicts]:
        slo_class = self.classes[index]
        path = (
            self.requests.at(model, slo_class),
            self.outcomes.at(model, slo_class, outcome),
            self.verdicts.at(slo_class, branch or "none"),
        )
        if len(self._paths) < 100_000:
            self._paths[model, index, branch, outcome] = path
        return path

    def _count_engine(self, exchange: Exchange, ttft_s: float, tpot_s: float) -> None:
        engine = self.engines.get(exchange.engine)
        if engine is None:
            engine = self.engines[exchange.engine] = EngineTotals()
        engine.requests += 1
        engine.output_tokens += exchange.output_tokens
        if ttft_s == ttft_s:
            engine.ttfts += 1
            engine.ttft_s += ttft_s
            if tpot_s == tpot_s:
                engine.tpots += 1
                engine.tpot_s += tpot_s

    def _count_failures(self, exchange: Exchange) -> None:
        asked_again = len(exchange.tried) - (exchange.outcome == "failed")
        self.retries += max(asked_again, 0)
        for index in exchange.tried:
            self.engines.setdefault(index, EngineTotals()).failures += 1

    def text(
        self, engines: Sequence[EngineStatus], held: int, open_requests: int, open_streams: int,
        dropped: Mapping[str, int],
    ) -> str:  # fmt: skip
        """Return the metrics in the exposition format; ``dropped`` records by what they are."""
        return "\n".join((
            *self._of_requests(),
            *self._of_policies(),
            *self._of_engines(engines),
            *_now(held, open_requests, open_streams),
            *plain(
                "gpusched_dropped_records_total", "counter",
                "Records that could not be written or exported.",
                ((labels(("kind",), (kind,)), count) for kind, count in dropped.items()),
            ),
            *_process(self.started_s),
            "",
        ))  # fmt: skip

    def _of_requests(self) -> Iterator[str]:
        rows = list(self.requests.items())
        yield from plain(
            "gpusched_requests_total", "counter", "Requests that are over, by outcome.",
            ((of, count.value) for of, count in self.outcomes.items()),
        )  # fmt: skip
        for name, what, edges, field in (
            ("time_to_first_token", "From a streamed request's arrival to its first token.",
             TTFT_EDGES, "ttft"),
            ("time_per_output_token", "Mean time between a stream's tokens after the first.",
             TPOT_EDGES, "tpot"),
            ("e2e_request_latency", "From a request's arrival to the end of its answer.",
             E2E_EDGES, "e2e"),
            ("request_queue_time", "From a request's arrival to its sending to an engine.",
             E2E_EDGES, "queue"),
        ):  # fmt: skip
            yield from histograms(
                f"gpusched_{name}_seconds", what, edges, ((of, getattr(r, field)) for of, r in rows)
            )
        for name, what in (
            ("prompt", "Prompt tokens of answered requests."),
            ("output", "Tokens of answers."),
            ("cached_prompt", "Prompt tokens that engines had in their prefix caches."),
        ):
            field = "cached_tokens" if name == "cached_prompt" else f"{name}_tokens"
            yield from plain(
                f"gpusched_{name}_tokens_total", "counter", what,
                ((of, getattr(r, field)) for of, r in rows),
            )  # fmt: skip

    def _of_policies(self) -> Iterator[str]:
        rows = list(self.verdicts.items())
        yield from plain(
            "gpusched_slo_met_total", "counter",
            "Requests that met every bound of their class.", ((of, v.met) for of, v in rows),
        )  # fmt: skip
        yield from plain(
            "gpusched_slo_missed_total", "counter",
            "Requests that missed a bound, failed, or were refused for want of capacity.",
            ((of, v.missed) for of, v in rows),
        )  # fmt: skip
        yield from histograms(
            "gpusched_decision_time_seconds", "Time that admission and routing took to decide.",
            DECISION_EDGES, [("", self.decision)],
        )  # fmt: skip
        yield from plain(
            "gpusched_refused_total", "counter", "Requests refused by the gateway, by reason.",
            ((of, count.value) for of, count in self.refusals.items()),
        )  # fmt: skip
        for name, what, value in (
            ("retries", "Requests sent to another engine after one failed.", self.retries),
            ("hedges", "Requests sent to a second engine for want of a first byte.", self.hedges),
        ):
            yield from plain(f"gpusched_{name}_total", "counter", what, [("", value)])

    def _of_engines(self, statuses: Sequence[EngineStatus]) -> Iterator[str]:
        index_of = {labels(("engine", "pool"), (s.url, s.pool)): i for i, s in enumerate(statuses)}
        names, statuses = list(index_of), [statuses[i] for i in index_of.values()]
        for name, what, states in (
            ("up", "Whether its health check passes.", [float(s.up) for s in statuses]),
            ("ejected", "Whether it is out of use after failures.",
             [float(s.ejected) for s in statuses]),
            ("outstanding_requests", "Requests sent and not over.",
             [float(s.outstanding) for s in statuses]),
            ("outstanding_tokens", "Tokens expected of requests that are not over.",
             [s.outstanding_tokens for s in statuses]),
            ("running_requests", "Requests in its batch, as it reports.",
             [s.running if s.up else None for s in statuses]),
            ("waiting_requests", "Requests in its queue, as it reports.",
             [s.waiting if s.up else None for s in statuses]),
            ("kv_cache_usage_ratio", "Share of its KV cache in use, as it reports.",
             [s.kv_usage if s.up else None for s in statuses]),
        ):  # fmt: skip
            known = [(of, v) for of, v in zip(names, states, strict=True) if v is not None]
            yield from plain(f"gpusched_engine_{name}", "gauge", what, known)
        yield from plain(
            "gpusched_engine_ejections_total", "counter", "Times it was taken out of use.",
            [(of, s.ejections) for of, s in zip(names, statuses, strict=True)],
        )  # fmt: skip
        totals = [(of, self.engines[i]) for of, i in index_of.items() if i in self.engines]
        for name, what, field in (
            ("requests_total", "Requests it answered or was answering at the end.", "requests"),
            ("failures_total", "Requests it failed before the first byte.", "failures"),
            ("output_tokens_total", "Tokens of its answers.", "output_tokens"),
            ("ttft_seconds_total", "Sum of TTFT of its streams.", "ttft_s"),
            ("ttft_streams_total", "Streams in the sum of TTFT.", "ttfts"),
            ("tpot_seconds_total", "Sum of TPOT of its streams.", "tpot_s"),
            ("tpot_streams_total", "Streams in the sum of TPOT.", "tpots"),
        ):
            samples = [(of, getattr(total, field)) for of, total in totals]
            yield from plain(f"gpusched_engine_{name}", "counter", what, samples)


def _now(held: int, open_requests: int, open_streams: int) -> Iterator[str]:
    for name, what, value in (
        ("queued_requests", "Requests that admission holds.", held),
        ("open_requests", "Requests that have arrived and are not over.", open_requests),
        ("open_streams", "Streams that have begun and are not over.", open_streams),
    ):
        yield from plain(f"gpusched_{name}", "gauge", what, [("", value)])


def _process(started_s: float) -> Iterator[str]:
    build = labels(("version", "python"), (__version__, platform.python_version()))
    yield from plain("gpusched_build_info", "gauge", "Version of gpusched; always 1.", [(build, 1)])
    for name, kind, what, value in (
        ("cpu_seconds_total", "counter", "Processor time, user and system.", time.process_time()),
        ("resident_memory_bytes", "gauge", "Memory in RAM.", float(resident_bytes())),
        ("start_time_seconds", "gauge", "Start, since 1970.", started_s),
    ):
        yield from plain(f"process_{name}", kind, what, [("", value)])


def resident_bytes() -> int:
    """Return the memory of this process in RAM; its peak where the system doesn't say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
