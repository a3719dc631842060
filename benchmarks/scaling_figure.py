"""Pictures of docs/scaling.md.

python benchmarks/scaling_figure.py docs
"""

import sys
from pathlib import Path

from gpusched.domain.scale import read_scale_spec
from gpusched.planning.capacity.cells import prepare
from gpusched.planning.capacity.scaling import Runner
from gpusched.report.scale import attainment_chart, demand_chart, instances_chart
from gpusched.report.svg import standalone


def main() -> None:
    """Simulate the example and write the pictures."""
    folder = Path(sys.argv[1])
    runner = Runner(prepare(read_scale_spec(Path(__file__).parents[1] / "examples" / "scale.yaml")))
    mine, base = runner.run("anticipating"), runner.run("threshold", 0.5)
    for name, chart in (
        ("instances", instances_chart([mine, base])),
        ("demand", demand_chart(mine)),
        ("attainment", attainment_chart(mine)),
    ):
        (folder / f"scaling-{name}.svg").write_text(standalone(chart), encoding="utf-8")


if __name__ == "__main__":
    main()
