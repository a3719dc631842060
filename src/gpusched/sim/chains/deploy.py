"""From a plan with blocks, or a trace, to what the simulator of chains takes."""

import numpy as np

from gpusched.domain.catalog import load_model
from gpusched.domain.plan import Plan
from gpusched.domain.workload import Workload
from gpusched.errors import InfeasibleError, InputError, unknown_name
from gpusched.policies.routing.ws_rr import POLICIES
from gpusched.sim.chains.simulate import ChainLoad
from gpusched.timing.block_servers import Serving, block_servers
from gpusched.timing.chains import BlockServers, Placed
from gpusched.traces.trace import Trace


def load_of(trace: Trace, workload: Workload) -> ChainLoad:
    """Return a trace's requests, all from one client.

    Raises:
        InputError: requests are to arrive by the answers before them.
    """
    if workload.users is not None:
        raise InputError("workload.users: closed loops are not simulated over blocks")
    if trace.think_s is not None:
        raise InputError(
            f"{trace.name}: rounds that arrive after the answer before them are not simulated over "
            "blocks; use a profile or trace without think times, such as chat"
        )
    return ChainLoad.of(trace.arrival_s, trace.prompt_tokens, trace.output_tokens)


def servers_of_plan(plan: Plan, trace: Trace) -> BlockServers:
    """Return the servers of a plan with blocks, timed for a trace's mean lengths."""
    assert plan.blocks is not None
    serving = Serving(
        plan.model, plan.weights_dtype, plan.kv_cache_dtype, timing=plan.timing,
        decode_batch=plan.blocks.decode_batch,
        prompt_tokens=float(trace.prompt_tokens.mean()),
        output_tokens=float(trace.output_tokens.mean()),
    )  # fmt: skip
    return block_servers(plan.cluster, serving)


def placed_of_plan(plan: Plan, servers: BlockServers) -> Placed:
    """Return where a plan's blocks lie.

    Raises:
        InputError: a node twice, blocks beyond the model's last, or an unknown routing.
        InfeasibleError: a node's blocks exceed its memory.
    """
    assert plan.blocks is not None
    if plan.blocks.routing not in POLICIES:
        raise InputError(
            "blocks.routing: " + unknown_name("routing of chains", plan.blocks.routing, POLICIES)
        )
    first, blocks = (np.zeros(servers.count, np.int64) for _ in range(2))
    total = load_model(plan.model).layers
    for placed in plan.blocks.nodes:
        j = servers.names.index(placed.node)
        if blocks[j]:
            raise InputError(f"blocks.nodes: {placed.node} is named twice; one range a node")
        if placed.first + placed.layers > total:
            raise InputError(
                f"blocks.nodes: {placed.node} holds blocks {placed.first} to "
                f"{placed.first + placed.layers - 1}, but {plan.model} has {total}"
            )
        first[j], blocks[j] = placed.first, placed.layers
        if servers.block_bytes * placed.layers > servers.memory_bytes[j] * (1 + 1e-9):
            raise InfeasibleError(
                f"memory: {placed.node} holds {placed.layers} blocks of "
                f"{servers.block_bytes / 1e9:.3g} GB and has {servers.memory_bytes[j] / 1e9:.3g} GB"
            )
    return Placed(first, blocks, servers.cache_room(blocks))
