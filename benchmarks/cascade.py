"""Dividing GPUs among the models of a cascade: the parametric search against HiGHS, in one run.

Usage: python benchmarks/cascade.py [--json]
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from gpusched.planning.cascade.allocation import by_program, slowest_model
from gpusched.planning.cascade.escalation import candidate_thresholds, escalate, undominated

SIZES = ((3, 32), (5, 128), (8, 512))
REPEATS = 5


def tables(models: int, gpus: int, seed: int) -> list[np.ndarray]:
    """Return latencies that fall with GPUs, larger models slower and not fitting on few."""
    random = np.random.default_rng(seed)
    found = []
    for model in range(models):
        least = 1 << min(model, 3)
        falling = (model + 1) * 4.0 / np.maximum(np.arange(gpus + 1) / least, 1e-9) ** 0.7
        falling *= random.uniform(0.95, 1.05, gpus + 1)
        falling[:least] = np.inf
        found.append(falling)
    return found


def best_s(call: Callable[[], object], repeats: int) -> float:
    """Return the shortest of several runs."""
    spans = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        spans.append(time.perf_counter() - begun)
    return min(spans)


def main() -> None:
    """Print a table, or a document with ``--json``."""
    begun = time.perf_counter()
    rows = []
    for models, gpus in SIZES:
        latency = tables(models, gpus, 0)
        fast, exact = slowest_model(latency, gpus), by_program(latency, gpus)
        if abs(fast.value_s - exact.value_s) > 1e-6 * exact.value_s:
            raise SystemExit(f"{models} models, {gpus} GPUs: {fast.value_s} is not {exact.value_s}")
        ours = best_s(lambda table=latency, n=gpus: slowest_model(table, n), REPEATS)  # type: ignore[misc]
        theirs = best_s(lambda table=latency, n=gpus: by_program(table, n), 1)  # type: ignore[misc]
        rows.append((f"{models} models on {gpus} GPUs", ours, "HiGHS", theirs))
    scores = np.random.default_rng(1).uniform(0, 100, (1000, 3))
    vectors = candidate_thresholds(scores, 24)
    found = escalate(scores, vectors)
    replay = best_s(lambda: escalate(scores, vectors), REPEATS)
    rows.append(
        (
            f"reach and quality of {len(vectors)} threshold vectors",
            replay,
            "kept",
            float(len(undominated(found))),
        )
    )
    document = {
        "benchmark": "cascade",
        "seconds": time.perf_counter() - begun,
        "rows": [
            {
                "name": name, "value": value, "unit": "s", "baseline": baseline,
                "baseline_value": other, "ratio": other / value if baseline == "HiGHS" else None,
            }
            for name, value, baseline, other in rows
        ],
    }  # fmt: skip
    if "--json" in sys.argv[1:]:
        print(json.dumps(document))
        return
    for row in document["rows"]:  # type: ignore[attr-defined]
        ratio = f"{row['ratio']:,.0f} times faster" if row["ratio"] else ""
        print(
            f"{row['name']:45s} {row['value'] * 1e3:9.3f} ms   "
            f"{row['baseline']} {row['baseline_value']:.3g}  {ratio}"
        )


if __name__ == "__main__":
    main()
