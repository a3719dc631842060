"""What a gateway loses when engines, or a gateway, break under load.

    python benchmarks/chaos.py [--engines simulated|vllm|llama.cpp] [--faults killed,frozen]
        [--rate 40] [--seconds 14] [--markdown] [--json]

Three engines behind ``gpusched serve`` with default settings, or two gateways over the same engines
and a client that turns to the other one. Requests arrive at random times at a fixed mean rate; after
a quarter of the run one engine (or gateway) breaks, at half of it it is sound again. A request is
*lost before its first byte* if the client got an error and no part of the answer, *lost after* if the
answer was cut, *refused* if it got 429 or 503. *Disturbed for* is the time from the fault to the last
error or late first token: a quarter of a second later than the median before the fault. Streams that an engine itself cuts cannot be saved: a token once given is not asked
for twice.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gpusched.engines.load import LoadGenerator, LoadRequest, LoadResult, completion_body, run_loop
from gpusched.engines.process import EngineServer, free_port

ENGINES = 3
OUTPUT_TOKENS = 32
ITERATION_MS = 10.0
LATE_S = 0.25
REFUSED = (429, 503)
READY_S = 60.0


@dataclass(frozen=True)
class Fault:
    """What breaks, and on which engines it can be tried."""

    name: str
    text: str
    gateways: int = 1
    simulated_only: bool = False
    faults: dict[str, Any] | None = None
    """Of a simulated engine."""


FAULTS = (
    Fault("none", "nothing"),
    Fault("killed", "an engine is killed and started again"),
    Fault("frozen", "an engine is frozen (SIGSTOP)"),
    Fault("slowed", "an engine is 20 times slower", faults={"slowdown": 20.0}),
    Fault("cut-early", "an engine cuts connections before the first event",
          simulated_only=True, faults={"drop_share": 1.0, "drop_after_events": 0}),
    Fault("cut-mid-stream", "an engine cuts its streams after three events",
          simulated_only=True, faults={"drop_share": 1.0, "drop_after_events": 3}),
    Fault("garbled-metrics", "an engine's metrics are garbage",
          simulated_only=True, faults={"garbled_metrics": True}),
    Fault("errors", "an engine answers 500",
          simulated_only=True, faults={"status_share": 1.0, "status": 500}),
    Fault("busy", "an engine answers 503",
          simulated_only=True, faults={"status_share": 1.0, "status": 503}),
    Fault("gateway-killed", "one of two gateways is killed", gateways=2),
)  # fmt: skip
BY_NAME = {fault.name: fault for fault in FAULTS}


class Engines:
    """The engines, each of which can be broken and mended."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.kind = kind
        self._stack = stack
        self.servers: list[Any] = [stack.enter_context(self._start(0)) for _ in range(ENGINES)]

    def _start(self, port: int) -> EngineServer:
        if self.kind == "vllm":
            from gpusched.engines.vllm_server import start_vllm

            return start_vllm(port=port, max_num_seqs=16)
        if self.kind == "llama.cpp":
            from gpusched.engines.llama_server import start_llama

            return start_llama(port=port, slots=8, context_tokens=2048)
        from gpusched.engines.simulated.child import start_simulated

        return start_simulated("--iteration-ms", str(ITERATION_MS), port=port)

    def breaks(self, fault: Fault) -> Callable[[], None]:
        """Break the first engine; return what mends it."""
        server = self.servers[0]
        if fault.name == "killed":
            server.kill()
            return lambda: self._again(server.port)
        if fault.name == "frozen":
            os.killpg(server.pid, signal.SIGSTOP)
            return lambda: os.killpg(server.pid, signal.SIGCONT)
        if fault.faults is not None and self.kind == "simulated":
            server.set_faults(**fault.faults)
            return lambda: server.set_faults()
        if fault.name == "slowed":
            return _interrupted(server.pid)
        return lambda: None

    def _again(self, port: int) -> None:
        self.servers[0] = self._stack.enter_context(self._start(port))


def _interrupted(pid: int) -> Callable[[], None]:
    """Let a process run for one millisecond in twenty; return what ends that."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            os.killpg(pid, signal.SIGSTOP)
            over.wait(0.019)
            os.killpg(pid, signal.SIGCONT)
            time.sleep(0.001)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


class ServedGateway:
    """A ``gpusched serve`` of its own process."""

    def __init__(self, urls: Sequence[str], folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        plan = folder / f"plan-{self.port}.yaml"
        plan.write_text(yaml.safe_dump(plan_of(urls, self.port)))
        self.log = (folder / f"gateway-{self.port}.log").open("w")
        command = [sys.executable, "-m", "gpusched.cli.main", "serve", str(plan)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        until_s = time.monotonic() + READY_S
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > until_s:
                self.stop()
                raise SystemExit("the gateway did not start: " + Path(self.log.name).read_text())
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        self.kill()
        self.log.close()


def plan_of(urls: Sequence[str], port: int) -> dict[str, Any]:
    """Return a plan whose one pool is these engines; its model only fills the form."""
    pool = {
        "name": "engines", "nodes": "here", "gpu": "l4", "replicas": len(urls),
        "endpoints": list(urls), "engine": {"max_num_seqs": 64},
    }  # fmt: skip
    return {
        "gpusched": "plan/1",
        "model": "llama-3.2-1b",
        "weights_dtype": "bf16",
        "cluster": {"nodes": [{"name": "here", "gpu": "l4", "gpus": len(urls)}]},
        "pools": [pool],
        "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 60},
        "slo": {"ttft_ms": 2000},
        "gateway": {"port": port, "served_model_name": "tiny"},
    }


def load_of(rate: float, seconds: float, seed: int) -> list[LoadRequest]:
    """Return requests at random times."""
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1.0 / rate, int(rate * seconds * 2)))
    return [
        LoadRequest(at, completion_body(rng.integers(3, 1000, 48).tolist(), OUTPUT_TOKENS))
        for at in times[times < seconds].tolist()
    ]


@dataclass
class Sent:
    """One request's fate: times in seconds from the run's start."""

    sent_s: float
    ended_s: float
    ttft_s: float
    error: str
    status: int
    events: int

    @property
    def refused(self) -> bool:
        return self.status in REFUSED

    @property
    def lost_before(self) -> bool:
        return bool(self.error) and self.events == 0 and not self.refused

    @property
    def lost_after(self) -> bool:
        return bool(self.error) and self.events > 0


async def drive(
    gateways: Sequence[ServedGateway], requests: Sequence[LoadRequest], plot: "Plot"
) -> list[Sent]:
    """Send the requests over the gateways in turn while the plot unfolds; where nothing of an answer
    came, a client with several gateways turns to the next."""
    generators = [LoadGenerator(gateway.url, timeout_s=60.0) for gateway in gateways]
    start_s = time.perf_counter()
    one = [LoadRequest(0.0, request.body) for request in requests]

    async def send(i: int) -> Sent:
        await asyncio.sleep(max(requests[i].arrival_s - (time.perf_counter() - start_s), 0.0))
        sent_s = time.perf_counter() - start_s
        for turn in range(len(generators)):
            began_s = time.perf_counter() - start_s
            found: LoadResult = await generators[(i + turn) % len(generators)].open_loop([one[i]])
            if not found.error[0] or found.events[0] or found.status[0] in REFUSED:
                break
        ttft_s = began_s - sent_s + float(found.first_s[0])
        ended_s = time.perf_counter() - start_s
        return Sent(
            sent_s, ended_s, ttft_s, found.error[0], int(found.status[0]), int(found.events[0])
        )

    plotting = asyncio.create_task(plot.unfold(start_s))
    sent = await asyncio.gather(*(send(i) for i in range(len(requests))))
    await plotting
    return list(sent)


@dataclass
class Plot:
    """When something breaks and when it is mended."""

    breaks: Callable[[], Callable[[], None]]
    at_s: float
    until_s: float

    async def unfold(self, start_s: float) -> None:
        """Break and mend at the times."""
        await asyncio.sleep(self.at_s - (time.perf_counter() - start_s))
        mend = await asyncio.to_thread(self.breaks)
        await asyncio.sleep(max(self.until_s - (time.perf_counter() - start_s), 0.0))
        await asyncio.to_thread(mend)


def outcome(fault: Fault, sent: Sequence[Sent], plot: Plot) -> dict[str, Any]:
    """Return a run's figures."""
    before = [s.ttft_s for s in sent if s.sent_s < plot.at_s and not s.error]
    during = [s for s in sent if plot.at_s <= s.sent_s < plot.until_s]
    usual_s = float(np.median(before))
    disturbed = [
        s.ended_s if s.error else s.sent_s + s.ttft_s
        for s in sent
        if s.ended_s >= plot.at_s and (s.error or s.ttft_s > usual_s + LATE_S)
    ]
    whole = [s.ttft_s for s in during if not s.error]
    return {
        "fault": fault.name,
        "what": fault.text,
        "requests": len(sent),
        "lost_before_first_byte": sum(s.lost_before for s in sent),
        "lost_after_first_byte": sum(s.lost_after for s in sent),
        "refused": sum(s.refused for s in sent),
        "ttft_p50_before_s": usual_s,
        "ttft_p99_during_s": float(np.quantile(whole, 0.99)) if whole else None,
        "disturbed_s": max(max(disturbed) - plot.at_s, 0.0) if disturbed else 0.0,
    }


def run_fault(
    fault: Fault, engines: Engines, folder: Path, rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Return what became of a run's requests."""
    with ExitStack() as stack:
        urls = [server.url for server in engines.servers]
        gateways = [ServedGateway(urls, folder) for _ in range(fault.gateways)]
        for gateway in gateways:
            stack.callback(gateway.stop)
        time.sleep(1.0)

        def breaks() -> Callable[[], None]:
            if fault.name == "gateway-killed":
                gateways[0].kill()
                return lambda: None
            return engines.breaks(fault)

        plot = Plot(breaks, seconds / 4, seconds / 2)
        sent = run_loop(drive(gateways, load_of(rate, seconds, seed), plot))
    return outcome(fault, sent, plot)


def chaos(kind: str, names: Sequence[str], rate: float, seconds: float, seed: int) -> list[dict[str, Any]]:  # fmt: skip
    """Return the figures of each fault."""
    chosen = [BY_NAME[name] for name in names]
    results = []
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        engines = Engines(kind, stack)
        for fault in chosen:
            if fault.simulated_only and kind != "simulated":
                continue
            print(f"{fault.name} ...", file=sys.stderr, flush=True)
            results.append(run_fault(fault, engines, Path(folder), rate, seconds, seed))
    return results


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of docs/reliability.md."""
    lines = [
        "| what breaks | requests | lost before the first byte | lost after it | refused | "
        "p99 TTFT while broken | disturbed for |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        p99 = r["ttft_p99_during_s"]
        cells = (
            r["what"], r["requests"], r["lost_before_first_byte"], r["lost_after_first_byte"],
            r["refused"], "-" if p99 is None else f"{p99 * 1e3:.0f} ms", f"{r['disturbed_s']:.1f} s",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", choices=("simulated", "vllm", "llama.cpp"), default="simulated")  # fmt: skip
    parser.add_argument("--faults", default=",".join(BY_NAME))
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=14.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    names = given.faults.split(",")
    for name in names:
        if name not in BY_NAME:
            parser.error(f"no fault {name!r}; there are {', '.join(BY_NAME)}")
    start_s = time.perf_counter()
    results = chaos(given.engines, names, given.rate, given.seconds, given.seed)
    if given.json:
        rows = [
            {
                "name": f"{r['fault']}: lost before the first byte",
                "value": r["lost_before_first_byte"] / r["requests"],
                "unit": "share of requests",
                "baseline": "none may be",
                "baseline_value": 0.0,
                "ratio": None,
            }
            for r in results
        ]
        document = {
            "benchmark": "chaos",
            "seconds": time.perf_counter() - start_s,
            "rows": rows,
            "engines": given.engines,
            "faults": results,
        }
        print(json.dumps(document))
    else:
        print(markdown(results))


if __name__ == "__main__":
    main()
