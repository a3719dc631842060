"""Draw the pictures of docs/green-cache.md.

python benchmarks/cache_figures.py [--out docs]
"""

import argparse
from pathlib import Path

import numpy as np

from gpusched.domain.spec import read_spec
from gpusched.planning.cache_size.answer import in_chunks, plan_cache
from gpusched.planning.cache_size.server import replay_store, saved_s, server_of
from gpusched.report.cache import day_chart, sensitivity_chart
from gpusched.report.svg import Line, line_chart, standalone
from gpusched.traces.workload import load_workload

RULES = ("lru", "lfu", "least-carbon-savings")
SIZES_TB = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


def rules_chart(spec):
    """Prefill seconds saved by each rule, as a share of what an unlimited cache saves."""
    server = server_of(spec)
    trace = in_chunks(load_workload(spec.workload, spec.slo, seed=0))

    def seconds(rule, size_tb):
        hit = replay_store(server, trace, [size_tb], rule).hit_tokens.sum(axis=1)
        return saved_s(server, hit.astype(np.int32))

    most = seconds("lru", 1e3)
    lines = [
        Line(rule, np.array(SIZES_TB), np.array([100 * seconds(rule, s) / most for s in SIZES_TB]))
        for rule in RULES
    ]
    return line_chart(
        lines, title="Prefill time saved by rule of eviction", x_label="cache, TB", log_x=True,
        y_label="% of an unlimited cache's", y_top=100.0,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).parents[1]
    parser.add_argument("--out", type=Path, default=root / "docs")
    args = parser.parse_args()
    spec = read_spec(root / "examples" / "green-cache.yaml")
    answer = plan_cache(spec, seed=0)
    for name, figure in (
        ("day", day_chart(answer)),
        ("embodied", sensitivity_chart(answer)),
        ("rules", rules_chart(spec)),
    ):
        (args.out / f"green-cache-{name}.svg").write_text(standalone(figure), encoding="utf-8")


if __name__ == "__main__":
    main()
