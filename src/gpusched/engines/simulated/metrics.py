"""``/metrics`` of a simulated engine, in the words of the engine that it stands for."""

from collections.abc import Mapping, Sequence
from typing import Literal

from gpusched.engines.simulated.iterations import IterationEngine

Dialect = Literal["vllm", "sglang", "llama.cpp"]

LATENCY_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0,
)  # fmt: skip

_NAMES: dict[str, Mapping[str, str]] = {
    "vllm": {
        "running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting",
        "kv_use": "vllm:kv_cache_usage_perc", "preemptions": "vllm:num_preemptions_total",
        "prompt": "vllm:prompt_tokens_total", "output": "vllm:generation_tokens_total",
        "queries": "vllm:prefix_cache_queries_total", "hits": "vllm:prefix_cache_hits_total",
    },
    "sglang": {
        "running": "sglang:num_running_reqs", "waiting": "sglang:num_queue_reqs",
        "kv_use": "sglang:token_usage", "prompt": "sglang:prompt_tokens_total",
        "output": "sglang:generation_tokens_total",
    },
    "llama.cpp": {
        "running": "llamacpp:requests_processing", "waiting": "llamacpp:requests_deferred",
        "prompt": "llamacpp:prompt_tokens_total", "output": "llamacpp:tokens_predicted_total",
    },
}  # fmt: skip


class Histogram:
    """Counts by upper bound, and the sum."""

    def __init__(self, bounds: Sequence[float] = LATENCY_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.sum += value
        for i, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[i] += 1
                return
        self.counts[-1] += 1

    def lines(self, name: str, labels: str) -> list[str]:
        """Return the histogram in Prometheus' text form."""
        total, found = 0, [f"# TYPE {name} histogram"]
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
        return [*found, f"{name}_sum{{{labels}}} {self.sum}", f"{name}_count{{{labels}}} {total}"]


def render(
    engine: IterationEngine, model: str, dialect: Dialect, histograms: Mapping[str, Histogram]
) -> str:
    """Return the metrics as Prometheus' text."""
    counts, kv = engine.counts, engine.kv
    values: dict[str, float] = {
        "running": len(engine.running), "waiting": engine.waiting, "kv_use": engine.kv_use,
        "preemptions": counts.preemptions, "prompt": counts.prompt_tokens,
        "output": counts.output_tokens, "queries": counts.cache_queries, "hits": counts.cache_hits,
    }  # fmt: skip
    labels = f'engine="0",model_name="{model}"' if dialect == "vllm" else f'model_name="{model}"'
    braces = "" if dialect == "llama.cpp" else f"{{{labels}}}"
    lines = []
    for key, name in _NAMES[dialect].items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# TYPE {name} {kind}", f"{name}{braces} {values[key]}"]
    if dialect == "vllm":
        name = "vllm:cache_config_info"
        sizes = f'block_size="{kv.block_tokens}",num_gpu_blocks="{kv.blocks}"'
        lines += [f"# TYPE {name} gauge", f'{name}{{{sizes},engine="0"}} 1.0']
        name = "vllm:request_success_total"
        lines += [f"# TYPE {name} counter", f"{name}{braces} {counts.finished}"]
        for name, histogram in histograms.items():
            lines += histogram.lines(f"vllm:{name}", labels)
    return "\n".join(lines) + "\n"


def load_report(engine: IterationEngine) -> bytes:
    """Return the ORCA load report of an answer's headers."""
    return (
        f"endpoint-load-metrics: TEXT named_metrics.num_requests_waiting={float(engine.waiting)}, "
        f"named_metrics.kv_cache_usage_perc={engine.kv_use:.6g}\r\n"
    ).encode()
