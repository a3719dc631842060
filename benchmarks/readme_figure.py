"""Draw the README's picture: measured against predicted TPOT of rows never fitted.

python benchmarks/readme_figure.py [--data FILE] [-o docs/accuracy.svg]
"""

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np

import timing_accuracy as accuracy
from gpusched.domain.catalog import load_model

WIDTH, HEIGHT, LEFT, TOP, SIDE = 880, 420, 64, 46, 330
LOW, HIGH = 1.0, 300.0


def place(value):
    return np.log(value / LOW) / np.log(HIGH / LOW) * SIDE


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=accuracy.SHARED / "data/measured_serving.csv.gz"
    )
    parser.add_argument("-o", "--output", type=Path, default=accuracy.ROOT / "docs/accuracy.svg")
    args = parser.parse_args()
    with gzip.open(args.data, "rt", newline="") as file:
        rows, _ = accuracy.usable(list(csv.DictReader(file)))
    fitted = set(accuracy.FITTED_ROWS.read_text().split())
    held = [
        r
        for r in rows
        if accuracy.key_of(r, with_users=True) not in fitted and accuracy.doubt(r) is None
    ]
    marks, errors = "", {"dense": [], "moe": []}
    for row, _, error in accuracy.evaluate(held, 2):
        kind = "dense" if load_model(row["model_path"]).moe is None else "moe"
        measured = float(row["tpot_ms"])
        errors[kind].append(abs(np.expm1(error)))
        x, y = LEFT + place(measured), TOP + SIDE - place(measured * np.exp(error))
        marks += f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>'
    axes = ""
    for value in (1, 3, 10, 30, 100, 300):
        at = place(value)
        axes += f'<path class="grid" d="M{LEFT + at:.1f} {TOP}v{SIDE}M{LEFT} {TOP + SIDE - at:.1f}h{SIDE}"/>'
        axes += (
            f'<text x="{LEFT + at:.1f}" y="{TOP + SIDE + 17}" text-anchor="middle">{value}</text>'
        )
        axes += (
            f'<text x="{LEFT - 8}" y="{TOP + SIDE - at + 4:.1f}" text-anchor="end">{value}</text>'
        )
    shift = place(1.2 * LOW)
    band = "".join(
        f'<path class="band" d="M{LEFT + max(-d, 0):.1f} {TOP + SIDE - max(d, 0):.1f}L{LEFT + SIDE - max(d, 0):.1f} {TOP + max(-d, 0):.1f}"/>'
        for d in (shift, -shift)
    )
    words = [
        (f"{len(held)} measured rows the model never saw", "b"),
        ("vLLM, SGLang and TensorRT-LLM on H100, H200,", ""), ("B200, B300, GB200 and GB300", ""), ("", ""),
        (f"dense models: mean error {np.mean(errors['dense']):.1%}, median {np.median(errors['dense']):.1%}", "dense"),
        (f"mixtures of experts: mean {np.mean(errors['moe']):.1%}, median {np.median(errors['moe']):.1%}", "moe"),
        ("", ""), ("dashed: 20 % off", ""),
    ]  # fmt: skip
    side = "".join(
        f'<text class="{style}" x="{LEFT + SIDE + 26}" y="{TOP + 24 + 23 * i}">{text}</text>'
        for i, (text, style) in enumerate(words)
    )
    style = (
        "svg{--ink:#1b2430;--soft:#8a94a1;--d:#1f6fb2;--m:#d9822b}"
        "@media(prefers-color-scheme:dark){svg{--ink:#e8edf3;--soft:#7d8896;--d:#5aa9e6;--m:#f0a860}}"
        "text{font:13px system-ui,sans-serif;fill:var(--ink)}.b,.t{font-weight:700}.grid{stroke:var(--soft);opacity:.35}"
        ".band{stroke:var(--soft);stroke-dasharray:5 4;fill:none}circle.dense{fill:var(--d)}circle.moe{fill:var(--m);opacity:.75}"
        "text.dense{fill:var(--d);font-weight:600}text.moe{fill:var(--m);font-weight:600}"
    )
    args.output.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><style>{style}</style>'
        f'<text class="t" x="{LEFT}" y="24">time per output token, ms: predicted against measured</text>{axes}{band}{marks}{side}'
        f'<text x="{LEFT + SIDE / 2}" y="{HEIGHT - 8}" text-anchor="middle">measured</text>'
        f'<text transform="translate(18,{TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">predicted</text></svg>\n'
    )


if __name__ == "__main__":
    main()
