"""``gpusched engine``: a small engine in the foreground, real or simulated."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from gpusched.engines.process import EngineServer

app = typer.Typer(
    help="Run a small engine to serve against: real or simulated.", no_args_is_help=True
)
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port on loopback; 0 takes a free one.")]
Sequences = Annotated[int, typer.Option(min=1, max=65536, help="Requests running at a time.")]
Batching = Annotated[
    str | None, typer.Option(help="Batching policy, such as mc-sf+margin=0.1 or nested-wait.")
]


@app.command("vllm")
def vllm(
    port: Port = 8101,
    model: Annotated[
        Path | None, typer.Option(help="Model directory; the tiny model if not given.")
    ] = None,
    max_num_seqs: Sequences = 32,
    max_model_len: Annotated[int, typer.Option(min=1, help="Prompt and answer together.")] = 2048,
    kv_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks; what 1 GB holds if not given.")
    ] = None,
    batching: Batching = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
) -> None:
    """Run vLLM on the CPU, with one of gpusched's batching policies inside if named.

    Example: gpusched engine vllm --port 8101 --batching mc-sf
    """
    from gpusched.engines.vllm_server import START_LIMIT_S, start_vllm

    if batching is not None:
        _check(batching)
    server = start_vllm(
        port=port, model=model, max_num_seqs=max_num_seqs, max_model_len=max_model_len,
        num_gpu_blocks=kv_blocks, batching=batching, threads=threads, wait=False,
    )  # fmt: skip
    _attend(server, START_LIMIT_S)


@app.command("llama.cpp")
def llama(
    port: Port = 8102,
    model: Annotated[
        Path | None, typer.Option(help="GGUF file; the tiny model if not given.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=1024, help="Requests running at a time.")] = 8,
    max_model_len: Annotated[int, typer.Option(min=1, help="Prompt and answer together.")] = 2048,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads.")] = 1,
) -> None:
    """Run llama.cpp's server.

    Example: gpusched engine llama.cpp --port 8102
    """
    from gpusched.engines.llama_server import start_llama

    _attend(
        start_llama(
            port=port, model=model, slots=slots, context_tokens=max_model_len, threads=threads
        ),
        1.0,
    )


@app.command("simulated")
def simulated(
    port: Port = 8103,
    plan: Annotated[
        Path | None, typer.Option(help="Take timing and settings of a plan's engine.")
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Which pool's; the first that takes requests if not given.")
    ] = None,
    iteration_ms: Annotated[
        float, typer.Option(min=0.01, max=1e6, help="Time of an iteration, without a plan.")
    ] = 10.0,
    prompt_token_us: Annotated[
        float, typer.Option(min=0.0, max=1e6, help="Added by each prompt token.")
    ] = 20.0,
    batching: Batching = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Requests running at a time [256].")
    ] = None,
    kv_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks of 16 tokens [4096].")
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model that it serves.")] = "tiny",
    max_model_len: Annotated[int, typer.Option(min=1, help="Prompt and answer together.")] = 4096,
    dialect: Annotated[str, typer.Option(help="Metrics of: vllm, sglang or llama.cpp.")] = "vllm",
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json; else 4 characters make a token.")
    ] = None,
    control_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Where faults are set, by POST.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of injected faults.")] = 0,
) -> None:
    """Run an engine that computes nothing and answers as a timing model says.

    Example: gpusched engine simulated --port 8103 --batching nested-wait --control-port 9103
    """
    from gpusched.engines.load import run_loop
    from gpusched.engines.simulated.iterations import IterationEngine
    from gpusched.engines.simulated.server import SimulatedEngine
    from gpusched.errors import InputError

    if dialect not in ("vllm", "sglang", "llama.cpp"):
        raise InputError(f"--dialect: expected vllm, sglang or llama.cpp, got {dialect!r}")
    if tokenizer is not None and not tokenizer.is_file():
        raise InputError(f"--tokenizer: no file {tokenizer}")
    timing, settings = _planned(plan, pool) if plan is not None else _plain(
        iteration_ms / 1e3, prompt_token_us / 1e6
    )  # fmt: skip
    given = {"batching": batching, "max_num_seqs": max_num_seqs, "kv_blocks": kv_blocks}
    settings |= {key: value for key, value in given.items() if value is not None}
    engine = SimulatedEngine(
        IterationEngine(timing, **settings, seed=seed), port=port, control_port=control_port,
        model=model, max_model_len=max_model_len, dialect=dialect,  # type: ignore[arg-type]
        tokenizer=tokenizer, seed=seed,
    )  # fmt: skip
    run_loop(_serve(engine))


async def _serve(engine: Any) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with engine:
        control = f", faults at {engine.control_url}" if engine.control_port is not None else ""
        print(f"simulated engine at {engine.url}{control}", file=sys.stderr, flush=True)
        await stopped.wait()


def _plain(iteration_s: float, prompt_token_s: float) -> tuple[Any, dict[str, Any]]:
    from gpusched.engines.simulated.child import affine_timing

    return affine_timing(iteration_s, prompt_token_s), {}


def _planned(path: Path, name: str | None) -> tuple[Any, dict[str, Any]]:
    from gpusched.domain.plan import Plan, read_spec_or_plan
    from gpusched.errors import InputError, unknown_name
    from gpusched.sim.deploy import fleet_for

    plan = read_spec_or_plan(path)
    if not isinstance(plan, Plan) or plan.kind != "pools":
        raise InputError(f"{path}: --plan takes a plan of pools of engines")
    pools = {pool.name: pool for pool in fleet_for(plan).pools}
    if name is not None and name not in pools:
        raise InputError(unknown_name("pool", name, pools))
    pool = (
        pools[name] if name is not None else next(p for p in pools.values() if p.role != "decode")
    )
    return pool.timing, {
        "batching": pool.batching, "kv_blocks": pool.kv_blocks, "block_tokens": pool.block_tokens,
        "max_num_seqs": pool.max_num_seqs, "max_num_batched_tokens": pool.max_num_batched_tokens,
        "prefix_caching": pool.prefix_caching,
    }  # fmt: skip


def _check(batching: str) -> None:
    """Find what is wrong with a policy before an engine takes half a minute to say it."""
    from gpusched.policies.batching.discipline import discipline
    from gpusched.policies.lengths.online import check_live

    check_live(discipline(batching))


def _attend(server: "EngineServer", limit_s: float) -> None:
    """Wait for the engine, say where it is, and stay until it or the user ends it."""
    from gpusched.errors import GpuschedError

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        print(f"starting {server.name}, pid {server.pid} ...", file=sys.stderr, flush=True)
        server.wait(limit_s)
        print(
            f"{server.name} at {server.url} after {server.healthy_after_s:.1f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        code = server.process.wait()
        raise GpuschedError(f"{server.name} ended with code {code}; from its log:\n{server.tail()}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        server.stop()
