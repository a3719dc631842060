"""From a plan to the fleet that the simulator runs."""

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import TypedDict

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.domain.plan import Plan, PlannedPool
from gpusched.errors import InfeasibleError, InputError
from gpusched.policies.batching.discipline import discipline
from gpusched.policies.routing.policy import routing_policy
from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.timing.disaggregated_experts import DisaggregatedExperts
from gpusched.timing.iteration import TimingModel, timing_model
from gpusched.timing.measured import NO_OVERHEAD, measured_model, read_measured
from gpusched.timing.memory import Memory, disaggregated_memory, memory
from gpusched.timing.transfer import RDMA_LATENCY_S, kv_token_s

DEFAULT_BUDGET_TOKENS = 2048


class _MemorySettings(TypedDict):
    weights_dtype: str
    kv_cache_dtype: str
    max_num_batched_tokens: int


def pool_timing(plan: Plan, pool: PlannedPool) -> TimingModel | DisaggregatedExperts:
    """Return the timing model of a pool's engines."""
    if pool.attention_gpus is not None and pool.expert_gpus is not None:
        if read_measured(plan.timing) is not None:
            raise InputError(
                f"timing: {plan.timing} holds the times of a whole engine; pool {pool.name} has GPUs "
                "apart for experts, whose times it does not tell"
            )
        attention = _timing(
            plan.model, pool.gpu, Parallelism(), plan.weights_dtype, plan.kv_cache_dtype,
            pool.engine.framework, plan.timing, None,
        )  # fmt: skip
        return DisaggregatedExperts(
            attention, pool.attention_gpus, pool.expert_gpus, pool.engine.expert_imbalance or 1.0
        )
    return engine_timing(plan, pool)


def engine_timing(plan: Plan, pool: PlannedPool) -> TimingModel:
    """Return the timing model of a pool whose GPUs all share every layer."""
    return _timing(
        plan.model, pool.gpu, pool.parallelism, plan.weights_dtype, plan.kv_cache_dtype,
        pool.engine.framework, plan.timing, pool.engine.expert_imbalance,
    )  # fmt: skip


@lru_cache(maxsize=512)
def _timing(
    model: str, gpu: str, parallelism: Parallelism, weights_dtype: str, kv_cache_dtype: str,
    framework: str, file: str | None, expert_imbalance: float | None,
) -> TimingModel:  # fmt: skip
    measured = read_measured(file)
    timing = timing_model(
        load_model(model),
        load_gpu(gpu),
        parallelism,
        weights_dtype=weights_dtype,
        kv_cache_dtype=kv_cache_dtype,
        framework=framework,
        file=file if measured is None else None,
    )
    if measured is not None:
        timing = measured_model(timing, measured, str(file))
    if expert_imbalance is None or parallelism.ep == 1:
        return timing
    return timing.at_imbalance(expert_imbalance)


def pool_memory(plan: Plan, pool: PlannedPool) -> Memory:
    """Return how the memory of one of a pool's GPUs divides, of those with KV cache.

    Raises:
        InfeasibleError: the experts do not fit on expert GPUs.
    """
    model, gpu = load_model(plan.model), load_gpu(pool.gpu)
    settings: _MemorySettings = {
        "weights_dtype": plan.weights_dtype,
        "kv_cache_dtype": plan.kv_cache_dtype,
        "max_num_batched_tokens": pool.engine.max_num_batched_tokens or DEFAULT_BUDGET_TOKENS,
    }
    if pool.attention_gpus is None or pool.expert_gpus is None:
        use = memory(model, gpu, pool.parallelism, pool.engine, **settings)
        measured = read_measured(plan.timing)
        if measured is None or measured.kv_tokens is None:
            return use
        # half a token more, so that division by the tokens of a block does not round down
        kv_bytes = (measured.kv_tokens + 0.5) * use.kv_bytes_per_token
        return replace(use, kv_bytes=kv_bytes, sequence_bytes=0.0)
    if model.moe is None:
        raise InputError(f"pool {pool.name}: {plan.model} has no experts for expert_gpus")
    use, needed = disaggregated_memory(
        model, gpu, pool.attention_gpus, pool.expert_gpus, pool.engine, **settings
    )
    budget = pool.engine.gpu_memory_utilization * gpu.memory_bytes
    if needed > budget:
        raise InfeasibleError(
            f"pool {pool.name}: an expert GPU needs {needed / 1e9:.1f} GB but may use "
            f"{budget / 1e9:.1f} GB; raise expert_gpus or use a narrower weights_dtype"
        )
    return use


def fleet_for(plan: Plan) -> Fleet:
    """Return the fleet that a plan describes.

    Raises:
        InputError: data-parallel attention without experts that would couple the units.
        InfeasibleError: a pool's model and KV cache do not fit into its GPUs' memory.
    """
    model = load_model(plan.model)
    pools = []
    for pool in map(partial(as_measured, plan), plan.pools):
        if pool.data_parallel_size > 1 and model.moe is None:
            raise InputError(
                f"pool {pool.name}: data_parallel_size is {pool.data_parallel_size}, but {plan.model} "
                "has no experts that the units would share; use replicas instead"
            )
        budget = pool.engine.max_num_batched_tokens or max(
            DEFAULT_BUDGET_TOKENS, pool.engine.max_num_seqs
        )
        use = pool_memory(plan, pool)
        stages = pool.pipeline_parallel_size
        holders = pool.attention_gpus or 1
        own_seqs = -(-pool.engine.max_num_seqs // holders)
        blocks = holders * use.kv_blocks(pool.engine.block_size, own_seqs)
        if blocks < stages:
            raise InfeasibleError(f"pool {pool.name}: {does_not_fit(use, pool)}")
        compiled = pool_timing(plan, pool).compile(
            max(8192, min(budget, 65536)), max(1024, pool.engine.max_num_seqs)
        )
        pools.append(
            Pool(
                name=pool.name,
                timing=compiled,
                kv_blocks=blocks,
                replicas=pool.replicas,
                role=pool.role,
                batching=pool_batching(plan, pool),
                block_tokens=pool.engine.block_size,
                max_num_seqs=pool.engine.max_num_seqs,
                max_num_batched_tokens=budget,
                prefix_caching=pool.engine.enable_prefix_caching,
                pipeline_stages=stages,
                data_parallel=pool.data_parallel_size,
                gpus_per_replica=pool.parallelism.gpus,
                startup_s=pool.engine.startup_s,
            )
        )
    link = KvLink()
    if any(pool.role == "decode" for pool in plan.pools):
        rate = min(link_rates(plan))
        link = KvLink(RDMA_LATENCY_S, kv_token_s(model, plan.kv_cache_dtype, rate))
    routing = with_bounds(plan, plan.routing, routing_policy(plan.routing).parameters)
    measured = read_measured(plan.timing)
    overhead = measured.request if measured is not None else NO_OVERHEAD
    return Fleet(tuple(pools), link, routing, plan.decode_routing, plan.admission, overhead)


def as_measured(plan: Plan, pool: PlannedPool) -> PlannedPool:
    """Return a pool with the limits of the engine that the plan's timing file was measured on: its
    block size, no more sequences than it runs, and its token budget where the plan sets none."""
    measured = read_measured(plan.timing)
    if measured is None:
        return pool
    engine, changes = pool.engine, dict[str, int]()
    if measured.block_size is not None:
        changes["block_size"] = measured.block_size
    if measured.max_num_seqs is not None:
        changes["max_num_seqs"] = min(engine.max_num_seqs, measured.max_num_seqs)
    if measured.max_num_batched_tokens is not None and engine.max_num_batched_tokens is None:
        changes["max_num_batched_tokens"] = measured.max_num_batched_tokens
    return pool.model_copy(update={"engine": engine.model_copy(update=changes)})


def pool_batching(plan: Plan, pool: PlannedPool) -> str:
    """Return how a pool batches: prefill pools first come first served, unless by deadline."""
    chosen = discipline(pool.engine.batching)
    if pool.role == "mixed":
        return pool.engine.batching
    if pool.role == "decode" or not chosen.window:
        return "vllm"
    return with_bounds(plan, pool.engine.batching, chosen.parameters)


def with_bounds(plan: Plan, policy: str, parameters: tuple[str, ...]) -> str:
    """Return a policy with the tightest bounds of the plan's objectives for those that it has as
    parameters and does not set itself."""
    given = {setting.partition("=")[0] for setting in policy.split("+")[1:]}
    for parameter, bound in (("ttft_s", "ttft_s"), ("itl_s", "tpot_s")):
        bounds = [getattr(slo, bound) for slo in plan.slo.classes.values()]
        known = [value for value in bounds if value is not None]
        if parameter in parameters and parameter not in given and known:
            policy += f"+{parameter}={min(known):.12g}"
    return policy


def link_rates(plan: Plan) -> Iterable[float]:
    """Yield what one replica of each pool, or each of its data-parallel units, can send or receive:
    all of its GPUs' networks."""
    for pool in plan.pools:
        per_gpu = plan.cluster.inter_node_bytes_per_s(plan.group_index(pool))
        gpus = pool.attention_gpus or pool.parallelism.gpus
        yield per_gpu * gpus / pool.data_parallel_size


def does_not_fit(use: Memory, pool: PlannedPool) -> str:
    """Return what of an engine does not fit, and what would help."""
    gpu = load_gpu(pool.gpu)
    budget = pool.engine.gpu_memory_utilization * gpu.memory_bytes
    return (
        f"{use.weights_bytes / 1e9:.1f} GB of weights and {use.working_bytes / 1e9:.1f} GB of "
        f"working space on each GPU leave no room for KV cache in {budget / 1e9:.1f} GB "
        f"({pool.engine.gpu_memory_utilization:g} of a {pool.gpu}'s {gpu.memory_bytes / 1e9:g} GB); "
        "spread it over more GPUs, use a narrower weights_dtype or larger GPUs"
    )
