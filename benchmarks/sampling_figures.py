"""Pictures of the pages on best-of-n and safe mixing.

    python benchmarks/sampling_figures.py --log boinf_answer_counts.parquet [--folder docs]

The log is Best-of-infinity's released answer counts; without it only safe mixing is drawn.
"""

import argparse
from pathlib import Path

from gpusched.report.svg import standalone
from gpusched.report.vote_curve import charts
from gpusched.reproduce.safety_game import Bench, chart
from gpusched.sampling.answer_log import read_answer_log
from gpusched.sampling.calibration import calibrate

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    if args.log is not None:
        only = {"dataset": "aime2025", "model": "gpt-oss-20b"}
        curve, _ = charts(calibrate(read_answer_log(args.log, only=only), trials=60))
        (args.folder / "best-of-n.svg").write_text(standalone(curve), encoding="utf-8")
    (args.folder / "safe-mixing.svg").write_text(standalone(chart(Bench(0))), encoding="utf-8")


if __name__ == "__main__":
    main()
