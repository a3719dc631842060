"""Balance the experts of one layer on a trace whose hotspots move, and hand the ratio to a plan."""

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.moe.balancing import Balancer, Eplb, Probe, balance
from gpusched.moe.expert_layer import expert_layer
from gpusched.moe.predictors import OfAccuracy
from gpusched.moe.routing_traces import moving_hotspots
from gpusched.timing.iteration import timing_model

engine = timing_model(load_model("gpt-oss-120b"), load_gpu("h200_sxm"), Parallelism(dp=8, ep=8))
layer = expert_layer(engine, attention_s=250e-6)
trace = moving_hotspots(
    200, experts=128, ranks=8, tokens_per_rank=768, top_k=4, concentration=0.3, hot_share=0.1
)
balancers = {
    "static": Balancer(layer),
    "eplb": Eplb(layer),
    "probe": Probe(layer, OfAccuracy(0.9)),
    "probe, split by true counts": Probe(layer, OfAccuracy(0.9), resplit=True),
}
for found in balance(layer, trace, balancers):
    print(
        f"{found.name:28s} imbalance {found.mean_imbalance:.2f}  layer "
        f"{found.layer_s.mean() * 1e6:4.0f} us  replicas {found.replicas.mean():4.1f}"
    )
faster = engine.at_imbalance(found.mean_imbalance)
print(f"decode step of 512 at context 1000: {faster.decode_s(512, 1000) * 1e3:.1f} ms")
