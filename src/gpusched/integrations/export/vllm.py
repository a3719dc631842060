"""Plain ``vllm serve`` command lines: a shell script that starts a node's engines."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from gpusched.domain.cluster import Cluster
from gpusched.domain.gateway import EngineAddress
from gpusched.domain.plan import PlannedPool
from gpusched.errors import InputError
from gpusched.integrations.export.flags import (
    Options,
    arguments,
    command_line,
    engine_options,
    parallel_options,
)
from gpusched.integrations.export.releases import Document, Release
from gpusched.integrations.export.scheduler import needs_plug_in

FIRST_PORT = 8100
SIDE_CHANNEL_PORT = 5600
"""Where NIXL's handshakes begin; each data-parallel rank takes one more."""
MASTER_PORT = 29500
DATA_PARALLEL_PORT = 13345


@dataclass(frozen=True, slots=True)
class Engine:
    """One replica and where it runs."""

    name: str
    """The pool's and the replica's number, after the model's where there are several."""
    release: Release
    pool: PlannedPool
    nodes: tuple[str, ...]
    """Where it answers, first; several if it spans nodes."""
    gpus: tuple[int, ...]
    """Of each node."""
    port: int
    place: int
    """Among the engines that begin on its node."""


def shell_script(parts: tuple[Release, ...], image: str | None = None) -> list[Document]:
    """Return the script; called with a node's name it starts the engines of that node."""
    engines = place(parts)
    commands: dict[str, list[str]] = defaultdict(list)
    for engine in engines:
        for rank, node in enumerate(engine.nodes):
            suffix = f"-{rank}" if rank else ""
            words = command(engine, rank)
            commands[node].append(f"  start {engine.name}{suffix} {command_line(words)}")
    cases = [f"{node})\n" + "\n".join(lines) + "\n  ;;" for node, lines in commands.items()]
    summary = "; ".join(f"{part.model}: {part.plan.summary}" for part in parts)
    text = "\n".join(
        [
            "#!/bin/sh",
            f"# Engines of a gpusched plan. {summary}.",
            "# Run on each node as: sh FILE NODE",
            *_how_to_reach(parts, engines),
            "set -eu",
            'start() { name=$1; shift; echo "$name: $*"; "$@" >"$name.log" 2>&1 & }',
            'case "${1:-}" in',
            *cases,
            f'*) echo "usage: sh $0 NODE, one of: {" ".join(commands)}" >&2; exit 2 ;;',
            "esac",
            "wait",
            "",
        ]
    )
    return [Document("engines", text, tuple(_notes(parts)))]


def command(engine: Engine, rank: int = 0) -> list[str]:
    """Return the command of an engine on the node of a rank, environment first."""
    release, pool = engine.release, engine.pool
    environment = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, engine.gpus))}
    if pool.role != "mixed":
        channel = SIDE_CHANNEL_PORT + 64 * engine.place
        environment |= {
            "VLLM_NIXL_SIDE_CHANNEL_HOST": engine.nodes[rank],
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(channel),
        }
    options: Options = {"served_model_name": release.model}
    if rank == 0:
        options["port"] = engine.port
    options |= parallel_options(pool) | engine_options(release, pool)
    if len(engine.nodes) > 1:
        options |= _spanning(engine, rank)
    words = ["env", *(f"{name}={value}" for name, value in environment.items())]
    return [*words, "vllm", "serve", release.checkpoint, *arguments(options)]


def _spanning(engine: Engine, rank: int) -> Options:
    """Return how the nodes of one replica find each other."""
    head, nodes, ranks = engine.nodes[0], len(engine.nodes), engine.pool.data_parallel_size
    if ranks > 1:
        if ranks % nodes:
            raise InputError(
                f"pool {engine.pool.name}: {ranks} data-parallel ranks do not divide over "
                f"{nodes} nodes"
            )
        options: Options = {
            "data_parallel_size_local": ranks // nodes,
            "data_parallel_address": head,
            "data_parallel_rpc_port": DATA_PARALLEL_PORT + engine.place,
        }
        if rank:
            options["data_parallel_start_rank"] = rank * ranks // nodes
    else:
        options = {
            "distributed_executor_backend": "mp",
            "nnodes": nodes,
            "node_rank": rank,
            "master_addr": head,
            "master_port": MASTER_PORT + engine.place,
        }
    return options | ({"headless": True} if rank else {})


def place(parts: tuple[Release, ...]) -> list[Engine]:
    """Return where each replica runs: the largest first, each on the fullest node with room.

    Raises:
        InputError: the replicas fit into the cluster's GPUs in all, but not into its nodes.
    """
    cluster = parts[0].plan.cluster
    free = {name: list(range(gpus)) for name, gpus in _nodes(cluster)}
    begun: dict[str, int] = defaultdict(int)
    wanted = [
        (part, pool, number)
        for part in parts
        for pool in part.pools
        for number in range(pool.replicas)
    ]
    engines = {}
    for part, pool, number in sorted(wanted, key=lambda item: -item[1].parallelism.gpus):
        nodes, gpus = _room(part, pool, free)
        for node in nodes:
            free[node] = [gpu for gpu in free[node] if gpu not in gpus]
        head = nodes[0]
        port = _port(pool, number, FIRST_PORT + begun[head])
        name = f"{part.pool_name(pool)}-{number}"
        if len(parts) > 1:
            name = f"{part.name}-{name}"
        engines[part.name, pool.name, number] = Engine(
            name, part, pool, nodes, gpus, port, begun[head]
        )
        begun[head] += 1
    return [engines[part.name, pool.name, number] for part, pool, number in wanted]


def _room(
    part: Release, pool: PlannedPool, free: dict[str, list[int]]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    index = part.plan.group_index(pool)
    group = part.plan.cluster.nodes[index]
    prefix = part.plan.cluster.group_name(index)
    names = [prefix] if group.count == 1 else [f"{prefix}-{n}" for n in range(group.count)]
    count = part.nodes_per_replica(pool)
    share, rest = divmod(pool.parallelism.gpus, count)
    open_nodes = sorted(
        (name for name in names if len(free[name]) >= share), key=lambda name: len(free[name])
    )
    if rest or len(open_nodes) < count:
        raise InputError(
            f"pool {pool.name}: no room on the nodes {prefix} for a replica of "
            f"{pool.parallelism.gpus} GPUs beside the others; the plan's GPUs suffice in all but "
            "not node by node"
        )
    chosen = tuple(sorted(open_nodes[:count], key=names.index))
    return chosen, tuple(free[chosen[0]][:share])


def _port(pool: PlannedPool, number: int, usual: int) -> int:
    """Return the port that the plan gives a replica, else the usual one."""
    if number >= len(pool.endpoints):
        return usual
    tail = pool.endpoints[number].url.rpartition(":")[2]
    return int(tail) if tail.isdigit() else usual


def _nodes(cluster: Cluster) -> Iterator[tuple[str, int]]:
    names = iter(cluster.node_names)
    for group in cluster.nodes:
        for _ in range(group.count):
            yield next(names), group.gpus_per_node


def _how_to_reach(parts: tuple[Release, ...], engines: list[Engine]) -> Iterator[str]:
    """Yield comments: the pools' endpoints as the gateway reads them."""
    yield "# For gpusched serve, give the plan's pools these endpoints:"
    for part in parts:
        for pool in part.pools:
            urls = [
                EngineAddress(url=f"http://{engine.nodes[0]}:{engine.port}").url
                for engine in engines
                if engine.release is part and engine.pool is pool
            ]
            yield f"#   {pool.name}: [{', '.join(urls)}]"


def _notes(parts: tuple[Release, ...]) -> Iterator[str]:
    for part in parts:
        if any(needs_plug_in(pool) for pool in part.pools):
            yield "the engines run a policy of gpusched by its scheduler for vLLM, which this version lacks"
        if part.disaggregated:
            yield "prefill and decode engines exchange KV cache by NIXL: install nixl beside vLLM"
