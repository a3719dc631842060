"""A node fails: requests on it start again."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gpusched.sim.pipelines.kernel import settle
from gpusched.sim.pipelines.lists import schedule
from gpusched.sim.pipelines.state import NONE, State


def stop_node(state: State, node: int, now_s: float) -> None:
    """Empty a node, and put the requests whose pipelines use it back in front of those that wait.

    Their jobs die where they are and are dropped when a queue or batch comes to them.
    """
    jobs, edges, nodes, requests = state.jobs, state.edges, state.nodes, state.requests
    g = state.g[0]
    settle(state, now_s)
    begun = _begun(state)
    again = []
    for job in range(len(jobs)):
        j = jobs[job]
        route = state.routes[job, : j["hops"]]
        if not j["live"] or node not in edges["to"][route]:
            continue
        j["live"] = 0
        for hop, edge in enumerate(route):
            e = edges[edge]
            cached = j["context"] + (j["tokens"] if hop < j["hop"] + begun[job] else 0)
            nodes["kv_used"][e["to"]] -= int(cached) * int(e["layers"])
            nodes["kv_reserved"][e["to"]] -= int(j["expected"]) * int(e["layers"])
        again.append(int(j["request"]))
    for request in sorted(again, reverse=True):
        requests["restarts"][request] += 1
        requests["next"][request] = g["waiting_head"]
        if g["waiting_head"] < 0:
            g["waiting_tail"] = request
        g["waiting_head"] = request
    g["in_flight"] -= len(again)
    _empty(state, node, now_s)


def _empty(state: State, node: int, now_s: float) -> None:
    n, queues = state.nodes[node], state.queues
    heads = [n["batch_head"], n["way_head"]]
    for queue in range(n["queue"], n["queue"] + n["segments"]):
        heads += [queues["prompt_head"][queue], queues["decode_head"][queue]]
        for field in ("prompt_head", "prompt_tail", "decode_head", "decode_tail"):
            queues[field][queue] = NONE
        queues["length"][queue] = 0
    for head in heads:
        for job in _chain(state, head):
            state.jobs["next"][job] = state.g["free_job"][0]
            state.g["free_job"] = job
    for field in ("way_head", "way_tail", "batch_head", "batch_tail"):
        n[field] = NONE
    if math.isfinite(n["finish_s"]):
        n["busy_s"] -= n["finish_s"] - now_s
    n["finish_s"] = math.inf
    n["copied_tokens"] = 0
    n["kv_used"] = n["kv_reserved"] = 0.0
    schedule.py_func(state, node, math.inf)  # type: ignore[attr-defined]


def _begun(state: State) -> NDArray[np.bool_]:
    """Tell which jobs are in a batch or between two segments of a node: their KV cache there is
    taken."""
    begun = np.zeros(len(state.jobs), np.bool_)
    for node in state.nodes:
        for job in _chain(state, node["batch_head"]):
            begun[job] = True
        for queue in range(node["queue"], node["queue"] + node["segments"]):
            for phase in ("prompt", "decode"):
                for job in _chain(state, state.queues[f"{phase}_head"][queue]):
                    edge = state.routes[job, state.jobs["hop"][job]]
                    begun[job] = state.edges["queue"][edge] != queue
    return begun


def _chain(state: State, head: int) -> Iterator[int]:
    job = int(head)
    while job >= 0:
        following = int(state.jobs["next"][job])
        yield job
        job = following
