"""The gateway beside nginx and other routers, before engines that answer at once.

    python benchmarks/gateway.py [--peers VENV ...] [--part plain|streams] [--passes 3] [--json]

*Plain*: answers a second of about 300 bytes over 64 connections, and what the middle request waits
longer than without a gateway, also on a single connection. *Streams*: events 20 ms apart over many
open streams; a gap beyond 40 ms counts as a stall. *CPU*: microseconds of the proxy's processes a
request or an event. The gateway is whole: least-tokens routing, bodies read, metrics kept.

Every proxy runs as one process, or one worker. Passes take turns, so that a noisy machine is
noisy to all. Load comes from wrk where it is installed, else from this file. nginx is looked for on
PATH, the others on PATH and in the ``bin`` of each ``--peers``.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
KEY = "sk-benchmark"
BODY = json.dumps(
    {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": "Write a few words about the sea, the wind, and the ships that sail there "
                "every summer.",
            }
        ],
        "max_tokens": 16,
    }
)
PATH = "/v1/chat/completions"
WAIT_S = 60.0
NAMES = ("gpusched", "nginx", "sglang-router", "vllm-router", "litellm")
STREAMING = ("gpusched", "nginx", "sglang-router", "vllm-router")

PLAN = """
gpusched: plan/1
model: llama-3.1-8b
weights_dtype: bf16
cluster: {{nodes: [{{name: n, count: 2, gpu: h100_sxm, gpus: 8}}]}}
pools:
  - {{name: p, nodes: n, gpu: h100_sxm, replicas: 2, engine: {{max_num_seqs: 4096}}, endpoints: {urls}}}
workload: {{profile: chat, rate_rps: 1, duration_s: 60}}
slo: {{ttft_ms: 1000, tpot_ms: 50, attainment: 0.9}}
gateway: {{port: {port}, served_model_name: m}}
"""
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  upstream engines {{ server 127.0.0.1:{a}; server 127.0.0.1:{b}; keepalive 1024; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 10000000;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
LITELLM = """
model_list:
  - {{model_name: m, litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{a}/v1", api_key: x}}}}
  - {{model_name: m, litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{b}/v1", api_key: x}}}}
general_settings: {{master_key: {key}}}
"""


@dataclass
class Proxy:
    name: str
    port: int
    pid: int
    plain: list[dict[str, float]] = field(default_factory=list)
    single: list[dict[str, float]] = field(default_factory=list)
    streams: dict[int, list[dict[str, float]]] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def command(
    name: str, peers: list[Path], folder: Path, port: int, a: int, b: int
) -> list[str] | None:
    """Return how a proxy is started; None if it is not installed."""
    urls = [f"http://127.0.0.1:{a}", f"http://127.0.0.1:{b}"]
    if name == "gpusched":
        plan = folder / "plan.yaml"
        plan.write_text(PLAN.format(urls=json.dumps(urls), port=port))
        return [sys.executable, "-m", "gpusched.cli.main", "serve", str(plan)]
    found = [str(peer / "bin" / name) for peer in peers if (peer / "bin" / name).exists()]
    binary = found[0] if found else shutil.which(name)
    if binary is None:
        return None
    if name == "nginx":
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, a=a, b=b))
        return [binary, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    if name == "litellm":
        (folder / "litellm.yaml").write_text(LITELLM.format(a=a, b=b, key=KEY))
        return [
            binary,
            "--config",
            str(folder / "litellm.yaml"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
    more = ["launch"] if name == "sglang-router" else []
    return [
        binary, *more, "--worker-urls", *urls, "--policy", "round_robin", "--host", "127.0.0.1",
        "--port", str(port), "--prometheus-port", str(free_port()), "--log-level", "error",
    ]  # fmt: skip


def ask(port: int) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{PATH}",
        data=BODY.encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return b"completion_tokens" in answer.read()
    return False


@contextlib.contextmanager
def started(arguments: list[str], log: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        until = time.monotonic() + WAIT_S
        while not ask(port):
            if process.poll() is not None or time.monotonic() > until:
                tail = log.read_text(errors="replace")[-500:]
                raise RuntimeError(f"{' '.join(arguments[:3])} does not answer: {tail}")
            time.sleep(0.2)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cpu_s(pid: int) -> float:
    """CPU time of a process and all it has started."""
    total = 0
    waiting = [pid]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return total / os.sysconf("SC_CLK_TCK")


def measured(proxy: Proxy, run) -> dict[str, float]:
    before = cpu_s(proxy.pid)
    figures = run()
    figures["cpu_s"] = cpu_s(proxy.pid) - before
    return figures


def wrk(port: int, connections: int, seconds: float, script: Path) -> dict[str, float]:
    out = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--timeout", "30s", "--latency",
         "-s", str(script), f"http://127.0.0.1:{port}{PATH}"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}

    def latency(share: str) -> float:
        value, unit = re.search(share + r"%\s+([\d.]+)(us|ms|s|m)", out).groups()
        return float(value) * units[unit]

    requests, taken = re.search(r"(\d+) requests in ([\d.]+)s", out).groups()
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    return {
        "requests": float(requests),
        "per_s": float(requests) / float(taken),
        "p50_ms": latency("50"),
        "p99_ms": latency("99"),
        "bad": float(bad[1]) if bad else 0.0,
    }


def own_load(port: int, connections: int, seconds: float) -> dict[str, float]:
    """A closed loop in one thread, where wrk is not installed."""
    import asyncio

    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}"
    ).encode()
    taken: list[float] = []
    bad = 0

    async def one(until: float) -> None:
        nonlocal bad
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < until:
            begun = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
            await reader.readexactly(length)
            taken.append(time.monotonic() - begun)
            bad += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    async def all_of_them() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(one(until) for _ in range(connections)))

    asyncio.run(all_of_them())
    taken.sort()
    return {
        "requests": float(len(taken)),
        "per_s": len(taken) / seconds,
        "p50_ms": taken[len(taken) // 2] * 1e3,
        "p99_ms": taken[int(len(taken) * 0.99)] * 1e3,
        "bad": float(bad),
    }


def load(port: int, connections: int, seconds: float, script: Path) -> dict[str, float]:
    if shutil.which("wrk"):
        return wrk(port, connections, seconds, script)
    return own_load(port, connections, seconds)


def open_streams(port: int, count: int, seconds: float) -> dict[str, float]:
    out = subprocess.run(
        [sys.executable, str(HERE / "gateway_streams.py"), str(port), str(count), str(seconds), KEY],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return json.loads(out)


def median(rows: list[dict[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def row(
    name: str, value: float, unit: str, baseline: str, baseline_value: float
) -> dict[str, object]:
    ratio = value / baseline_value if baseline_value else None
    return {
        "name": name, "value": value, "unit": unit, "baseline": baseline,
        "baseline_value": baseline_value, "ratio": ratio,
    }  # fmt: skip


def plain_rows(proxies: list[Proxy], direct: Proxy) -> list[dict[str, object]]:
    reference = next((p for p in proxies if p.name == "nginx"), direct)
    rows = []
    for proxy in proxies:
        rate, base = median(proxy.plain, "per_s"), median(reference.plain, "per_s")
        rows.append(row(f"{proxy.name}: plain", rate, "requests/s", reference.name, base))
        # The ratio within each pass, whose middle a drift of the machine does not move.
        rows[-1]["ratio"] = statistics.median(
            a["per_s"] / b["per_s"] for a, b in zip(proxy.plain, reference.plain, strict=True)
        )
        for label, name in (("p50", "p50_ms"), ("p99", "p99_ms")):
            value = median(proxy.plain, name)
            rows.append(
                row(
                    f"{proxy.name}: plain {label}",
                    value,
                    "ms",
                    "direct",
                    median(direct.plain, name),
                )
            )
        if proxy is direct:
            continue
        for label, mine, theirs in (
            ("added p50, 64 connections", proxy.plain, direct.plain),
            ("added p50, 1 connection", proxy.single, direct.single),
        ):
            added = statistics.median(
                a["p50_ms"] - b["p50_ms"] for a, b in zip(mine, theirs, strict=True)
            )
            nearest = reference.plain if mine is proxy.plain else reference.single
            base = statistics.median(
                a["p50_ms"] - b["p50_ms"] for a, b in zip(nearest, theirs, strict=True)
            )
            rows.append(row(f"{proxy.name}: {label}", added, "ms", reference.name, base))
        us, base_us = (
            statistics.median(r["cpu_s"] / r["requests"] for r in p.plain) * 1e6
            for p in (proxy, reference)
        )
        rows.append(row(f"{proxy.name}: CPU a request", us, "us", reference.name, base_us))
        bad = sum(r["bad"] for r in proxy.plain)
        if bad:
            rows.append(
                row(f"{proxy.name}: answers other than 200", bad, "requests", "direct", 0.0)
            )
    return rows


def stream_rows(proxies: list[Proxy], direct: Proxy, counts: list[int]) -> list[dict[str, object]]:
    rows = []
    for count in counts:
        for proxy in proxies:
            mine, theirs = proxy.streams[count], direct.streams[count]
            label = f"{proxy.name}: {count} streams"
            for name, unit in (
                ("answers_per_s", "answers/s"),
                ("gap_p50_ms", "ms"),
                ("gap_p99_ms", "ms"),
            ):
                title = name.removesuffix("_per_s").removesuffix("_ms").replace("_", " ")
                rows.append(
                    row(
                        f"{label}, {title}",
                        median(mine, name),
                        unit,
                        "direct",
                        median(theirs, name),
                    )
                )
            if proxy is direct:
                continue
            added = median(mine, "stalls") - median(theirs, "stalls")
            rows.append(
                row(
                    f"{label}, added stalls",
                    100 * added,
                    "% of gaps",
                    "direct",
                    100 * median(theirs, "stalls"),
                )
            )
            us = (
                statistics.median(r["cpu_s"] / (r["events_per_s"] * r["seconds"]) for r in mine)
                * 1e6
            )
            cores = statistics.median(r["cpu_s"] / r["seconds"] for r in mine)
            rows.append(row(f"{label}, CPU an event", us, "us", "one core", cores))
            failed = sum(r["failed"] for r in mine)
            if failed:
                rows.append(row(f"{label}, failed", failed, "streams", "direct", 0.0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--peers", type=Path, action="append", default=[], help="virtual environment with peers"
    )
    parser.add_argument("--part", choices=("plain", "streams", "all"), default="all")
    parser.add_argument("--only", default=",".join(NAMES), help="proxies, separated by commas")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one cell")
    parser.add_argument("--streams", default="100,300,600,750")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    counts = [int(count) for count in options.streams.split(",")]
    missing: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "plain.lua"
        script.write_text(
            f"wrk.method='POST'; wrk.headers['Content-Type']='application/json'\n"
            f"wrk.headers['Authorization']='Bearer {KEY}'; wrk.body='{BODY}'\n"
        )
        a, b = free_port(), free_port()
        backend = [sys.executable, str(HERE / "gateway_backend.py"), str(a), str(b)]
        process = stack.enter_context(started(backend, folder / "backend", a))
        direct = Proxy("direct", a, process.pid)
        proxies = [direct]
        for name in options.only.split(","):
            port = free_port()
            arguments = command(name, options.peers, folder, port, a, b)
            if arguments is None:
                missing.append(name)
                continue
            print(f"starting {name}", file=sys.stderr)
            try:
                process = stack.enter_context(started(arguments, folder / f"{name}.log", port))
            except RuntimeError as error:
                print(error, file=sys.stderr)
                missing.append(name)
                continue
            proxies.append(Proxy(name, port, process.pid))
        rows = []
        if options.part != "streams":
            for number in range(options.passes):
                print(f"plain, pass {number + 1} of {options.passes}", file=sys.stderr)
                for proxy in proxies[number % len(proxies) :] + proxies[: number % len(proxies)]:
                    for connections, results in ((64, proxy.plain), (1, proxy.single)):
                        seconds = options.seconds if connections == 64 else options.seconds / 3
                        results.append(
                            measured(
                                proxy,
                                lambda p=proxy, c=connections, s=seconds: load(
                                    p.port, c, s, script
                                ),
                            )
                        )
            rows += plain_rows(proxies, direct)
        if options.part != "plain":
            streaming = [p for p in proxies if p.name in ("direct", *STREAMING)]
            for count in counts:
                for number in range(options.passes):
                    print(f"{count} streams, pass {number + 1}", file=sys.stderr)
                    for proxy in (
                        streaming[number % len(streaming) :] + streaming[: number % len(streaming)]
                    ):
                        figures = measured(
                            proxy, lambda p=proxy, c=count: open_streams(p.port, c, options.seconds)
                        )
                        # A second passes while the streams are opened, at half their number.
                        figures["seconds"] = options.seconds + 0.5
                        proxy.streams.setdefault(count, []).append(figures)
            rows += stream_rows(streaming, direct, counts)
    report = {
        "benchmark": "gateway",
        "seconds": time.monotonic() - began,
        "rows": rows,
        "not_installed": missing,
    }
    if options.json:
        print(json.dumps(report))
        return
    for r in rows:
        ratio = f"{r['ratio']:8.2f}" if r["ratio"] is not None else "        "
        print(
            f"{r['name']:45} {r['value']:12.2f} {r['unit']:11} {ratio} of {r['baseline']} ({r['baseline_value']:.2f})"
        )
    for name in missing:
        print(f"{name}: not installed")


if __name__ == "__main__":
    main()
