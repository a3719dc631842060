"""Check a split against its constraints by code that shares nothing with the programs."""

import numpy as np

from gpusched.domain.spec import Spec
from gpusched.planning.rounds.nodes import fit_nodes
from gpusched.planning.search import Deployment
from gpusched.traces.trace import Trace


def violations(spec: Spec, trace: Trace, deployment: Deployment) -> list[str]:
    """Return what a split violates: roles, GPUs, nodes, memory and idle decode time; empty if sound."""
    found = []
    if not {"prefill", "decode"} <= set(deployment.roles):
        found.append("a phase has no worker")
    if min(deployment.counts, default=0) < 1:
        found.append("a pool has no worker")
    for index, group in enumerate(spec.cluster.nodes):
        workers: dict[int, int] = {}
        for engine, count in zip(deployment.engines, deployment.counts, strict=True):
            if engine.group == index:
                workers[engine.gpus] = workers.get(engine.gpus, 0) + count
        used = sum(size * count for size, count in workers.items())
        if used > group.total_gpus:
            found.append(f"{used} GPUs of {group.total_gpus} of nodes {index}")
        elif workers and not fit_nodes(
            np.array(list(workers.values())),
            np.array(list(workers)),
            group.gpus_per_node,
            group.total_gpus // group.gpus_per_node,
        ):
            found.append(f"workers of nodes {index} straddle two of them")
    if spec.search.max_gpus is not None and deployment.gpus > spec.search.max_gpus:
        found.append(f"{deployment.gpus} GPUs, search.max_gpus is {spec.search.max_gpus}")
    share = max(slo.attainment for slo in spec.slo.classes.values())
    context = np.sort(trace.prompt_tokens.astype(np.int64) + trace.output_tokens)
    longest = int(context[max(int(np.ceil(share * len(context))) - 1, 0)])
    tpot_s = min((slo.tpot_s or np.inf) for slo in spec.slo.classes.values())
    for engine, role in zip(deployment.engines, deployment.roles, strict=True):
        if engine.kv_tokens < longest:
            found.append(f"a {role} worker holds {engine.kv_tokens} tokens of {longest}")
        if (
            role == "decode"
            and engine.timing.iteration_s((longest,)) > tpot_s
            and (engine.timing.iteration_s((int(context.mean()),)) > tpot_s)
        ):
            found.append(f"a lone token takes longer than {tpot_s:g} s on a decode worker")
    return found


def check_deployment(spec: Spec, trace: Trace, deployment: Deployment) -> None:
    """Raise if a split violates a constraint: a fault of the planner, not of the question.

    Raises:
        RuntimeError: names the constraints.
    """
    found = violations(spec, trace, deployment)
    if found:
        raise RuntimeError(f"the planner proposed an unsound split: {'; '.join(found)}")
