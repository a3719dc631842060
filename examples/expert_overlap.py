"""Cut a batch where experts have GPUs of their own, and find how many GPUs each side should get."""

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.moe.overlap import LinearFit, best_split, ping_pong, prefill_costs, solve_overlap
from gpusched.reproduce.findep import ATTENTION, EXCHANGE, GEMM
from gpusched.timing.disaggregated_experts import DisaggregatedExperts
from gpusched.timing.iteration import timing_model

model = load_model("qwen3-235b-a22b")
for split, exchange in EXCHANGE.items():
    costs = prefill_costs(model, LinearFit(GEMM, ATTENTION, exchange), *split, 4096, layers=24)
    fine, coarse = solve_overlap(costs, 2), ping_pong(costs, 2)
    print(
        f"{split[0]} attention + {split[1]} expert GPUs: {fine.r1} micro-batches of {fine.samples}, "
        f"{fine.r2} pieces, {fine.order}: {fine.samples_per_s:.3f} samples/s, "
        f"{fine.samples_per_s / coarse.samples_per_s:.2f} times ping-pong"
    )
fit = LinearFit(GEMM, ATTENTION, EXCHANGE[2, 6])
best = best_split(8, lambda a, e: prefill_costs(model, fit, a, e, 4096, layers=24), lambda a, e: 2)
print(f"with one fit for all: {best.attention_gpus} + {best.expert_gpus} of 8 GPUs")

engine = timing_model(load_model("deepseek-v3"), load_gpu("h200_sxm"), Parallelism())
replica = DisaggregatedExperts(engine, attention_gpus=4, expert_gpus=12)
for batch in (64, 256, 1024):
    print(f"decode step of {batch} at context 1024: {replica.decode_s(batch, 1024) * 1e3:.1f} ms")
