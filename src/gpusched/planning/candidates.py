"""Engines that a spec's cluster can run, and why the others cannot."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.plan import Plan, PlannedPool
from gpusched.domain.spec import Spec
from gpusched.sim.deploy import does_not_fit, engine_timing, pool_memory
from gpusched.timing.iteration import TimingModel
from gpusched.timing.measured import read_measured
from gpusched.traces.trace import Trace

FAST_LINK_BYTES_PER_S = 100e9


@dataclass(frozen=True)
class Engine:
    """One kind of replica on one group of nodes, with what the bounds need of it."""

    pool: PlannedPool
    group: int
    timing: TimingModel
    kv_tokens: int
    usd_per_hour: float
    """Of one replica."""
    max_replicas: int

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.pool.parallelism.gpus


@dataclass(frozen=True)
class Refusal:
    """An engine that cannot serve the workload, however many replicas there are."""

    label: str
    reason: str
    kind: str
    """``memory``, ``ttft``, ``tpot`` or ``e2e``."""
    severity: float
    """How far off: needed over available, or latency of a lone request over its bound."""
    remedy: str


def skeleton(spec: Spec, pools: tuple[PlannedPool, ...]) -> Plan:
    """Return a plan for a spec with the given pools and nothing predicted yet."""
    return Plan(
        model=spec.model,
        weights_dtype=spec.dtype,  # type: ignore[arg-type]
        kv_cache_dtype=spec.kv_cache_dtype,
        cluster=spec.cluster,
        pools=pools,
        admission=spec.admission,
        routing=spec.routing,
        decode_routing=spec.decode_routing,
        workload=spec.workload,
        slo=spec.slo,
        objective=spec.objective,
        timing=spec.timing,
    )


def enumerate_engines(spec: Spec, trace: Trace) -> tuple[list[Engine], list[Refusal]]:
    """Return the engines that could meet the objectives on an idle replica, and the refusals."""
    fitting, refusals = fitting_engines(spec, trace)
    engines = []
    for engine in fitting:
        refusal = _latency_refusal(spec, trace, engine)
        if refusal is None:
            engines.append(engine)
        else:
            refusals.append(refusal)
    return engines, refusals


def fitting_engines(spec: Spec, trace: Trace) -> tuple[list[Engine], list[Refusal]]:
    """Return the engines whose memory holds the model and the longest request, and the refusals."""
    engines, refusals = [], []
    for pool, group in _layouts(spec):
        plan = skeleton(spec, (pool,))
        label = kind_label(pool)
        use = pool_memory(plan, pool)
        blocks = use.kv_blocks(pool.engine.block_size, pool.engine.max_num_seqs)
        kv_tokens = blocks // pool.pipeline_parallel_size * pool.engine.block_size
        needed = _needed_tokens(spec, trace)
        if kv_tokens < needed:
            gpu = load_gpu(pool.gpu)
            budget = gpu.memory_bytes * pool.engine.gpu_memory_utilization
            want = use.weights_bytes + use.working_bytes + use.kv_bytes_per_token * needed
            reason = (
                does_not_fit(use, pool)
                if blocks < 1
                else f"its KV cache holds {kv_tokens} tokens, requests need up to {needed}"
            )
            refusals.append(
                Refusal(
                    label,
                    reason,
                    "memory",
                    want / budget,
                    "use larger GPUs, more of them in one replica, or a narrower weights_dtype",
                )
            )
            continue
        timing = engine_timing(plan, pool)
        size = pool.parallelism.gpus
        limit = spec.cluster.nodes[group].total_gpus
        if spec.search.max_gpus is not None:
            limit = min(limit, spec.search.max_gpus)
        price = spec.cluster.usd_per_gpu_hour(group) * size
        engines.append(Engine(pool, group, timing, kv_tokens, price, limit // size))
    return engines, refusals


def _layouts(spec: Spec) -> Iterator[tuple[PlannedPool, int]]:
    """Yield every layout worth a look on every group of nodes.

    Tensor parallelism stays inside a node. Pipeline stages are tried where a node cannot hold the
    model, or where its links are slow. Of an engine that was measured, only its own layout is known.
    """
    model, measured = load_model(spec.model), read_measured(spec.timing)
    attention = model.attention
    for group, nodes in enumerate(spec.cluster.nodes):
        if spec.search.gpus is not None and nodes.gpu not in spec.search.gpus:
            continue
        per_node = nodes.gpus_per_node
        sizes = spec.search.tensor_parallel_sizes or _powers_of_two(per_node)
        slow = load_gpu(nodes.gpu).link_bytes_per_s < FAST_LINK_BYTES_PER_S
        for tp in sizes:
            if tp > per_node or attention.query_heads % tp:
                continue
            across = tp == per_node or slow
            stages = spec.search.pipeline_parallel_sizes or ((1, 2, 4, 8) if across else (1,))
            for pp in stages:
                fits = tp * pp <= nodes.total_gpus and pp <= model.layers
                if measured is not None:
                    fits = fits and pp == 1 and tp == measured.gpus
                if spec.search.max_gpus is not None:
                    fits = fits and tp * pp <= spec.search.max_gpus
                if not fits:
                    continue
                expert = (False, True) if model.moe is not None and tp > 1 else (False,)
                for expert_parallel in expert:
                    for budget in _budgets(spec):
                        engine = spec.engine.model_copy(update={"max_num_batched_tokens": budget})
                        name = spec.cluster.group_name(group)
                        yield (
                            PlannedPool(
                                name="engines",
                                nodes=name,
                                gpu=nodes.gpu,
                                replicas=1,
                                tensor_parallel_size=tp,
                                pipeline_parallel_size=pp,
                                enable_expert_parallel=expert_parallel,
                                engine=engine,
                            ),
                            group,
                        )


def _budgets(spec: Spec) -> tuple[int, ...]:
    given = spec.engine.max_num_batched_tokens
    if given is not None:
        return (given,)
    least = spec.engine.max_num_seqs if spec.engine.batching == "vllm" else 1
    return tuple(sorted({max(budget, least) for budget in spec.search.max_num_batched_tokens}))


def _powers_of_two(limit: int) -> tuple[int, ...]:
    return tuple(1 << i for i in range(limit.bit_length()) if 1 << i <= limit)


def _needed_tokens(spec: Spec, trace: Trace) -> int:
    """Return the KV cache that the longest request within the attainment needs."""
    share = max(slo.attainment for slo in spec.slo.classes.values())
    total = trace.prompt_tokens.astype(np.int64) + trace.output_tokens
    return int(np.quantile(total, share, method="inverted_cdf"))


def kind_label(pool: PlannedPool) -> str:
    """Return the GPU and the degrees of parallelism of a pool's replicas."""
    expert = "·EP" if pool.enable_expert_parallel else ""
    return f"{pool.gpu} {pool.parallelism.layout}{expert}"


def _latency_refusal(spec: Spec, trace: Trace, engine: Engine) -> Refusal | None:
    """Refuse an engine that misses an objective with one request at a time."""
    timing = engine.timing
    for index, slo in enumerate(spec.slo.classes.values()):
        rows = np.arange(len(trace))
        if trace.class_id is not None and spec.slo.only is None:
            rows = np.flatnonzero(trace.class_id == index)
        if not len(rows):
            continue
        for bound, values in lone_latencies(trace, timing, rows).items():
            limit = getattr(slo, f"{bound}_s")
            if limit is None:
                continue
            at_best = float(np.quantile(values, slo.attainment, method="inverted_cdf"))
            if at_best > limit:
                name = bound.upper()
                return Refusal(
                    kind_label(engine.pool),
                    f"{name} of a lone request is {at_best * 1e3:.3g} ms at the "
                    f"{slo.attainment:.4g} quantile, above {limit * 1e3:g} ms",
                    bound,
                    at_best / limit,
                    f"allow a {name} of at least {at_best * 1e3:.3g} ms, or lower the attainment",
                )
    return None


def lone_latencies(
    trace: Trace, timing: TimingModel, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return the latencies of requests served alone, with all of the prompt cached but a block.

    A lower bound: a prefix cache can spare at most that much, queues and batches only add.
    """
    prompt = trace.prompt_tokens[rows].astype(np.float64)
    output = trace.output_tokens[rows].astype(np.float64)
    cold = prompt
    if trace.prefix is not None:
        cold = np.minimum(prompt, float(trace.prefix.block_tokens))
    grid = np.unique(np.geomspace(1, max(cold.max(), 2), 64).astype(np.int64))
    whole = np.array([timing.prefill_s(int(n)) for n in grid])
    ttft = np.interp(cold, grid, whole)
    first, window = timing.decode_s(1, 0), timing.window
    middle = prompt + output / 2
    tpot = first + middle * timing.context_s + np.minimum(middle, window) * timing.window_context_s
    tpot = np.where(output > 1, tpot, 0.0)
    return {"ttft": ttft, "tpot": tpot, "e2e": ttft + tpot * (output - 1)}


def least_work_s(trace: Trace, timing: TimingModel, max_num_seqs: int) -> tuple[float, float]:
    """Return the least engine time the trace's prefills and decodes take, at best efficiency.

    Every prompt token costs at least what it costs in the largest batch, every output token its
    share of the best decode batch; attention is linear and counted in full. Cached prefixes cost
    nothing. A pipeline's stages work side by side.
    """
    compiled = timing.compile(8192, max(1024, max_num_seqs))
    prompt = trace.prompt_tokens.astype(np.float64)
    output = trace.output_tokens.astype(np.float64)
    best_token = float(np.min(compiled.tokens_s[256:] / np.arange(256, len(compiled.tokens_s))))
    if trace.prefix is not None:
        from gpusched.traces.describe import ideal_hit_ratio

        prompt = prompt * (1.0 - ideal_hit_ratio(trace))
    work = prompt * best_token
    if trace.prefix is None:
        work = work + compiled.work_s * pairs_of(prompt)
    batch = np.arange(1, min(max_num_seqs, len(compiled.decode_s) - 1) + 1)
    best_step = min(float(np.min(compiled.decode_s[batch] / batch)), best_token)
    steps = output - 1
    contexts = steps * trace.prompt_tokens + steps * output / 2
    decode = steps * best_step + contexts * compiled.context_s
    stages = timing.parallelism.pp
    return float(work.sum()) / stages, float(decode.sum()) / stages


def pairs_of(prompt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the query-key pairs of whole prompts."""
    return np.asarray(prompt * (prompt + 1) / 2)
