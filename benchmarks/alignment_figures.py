"""Draw the pictures of docs/controlled-decoding.md and docs/pareto-alignment.md.

    python benchmarks/alignment_figures.py [-o docs]

The first is the worst-case win rate by strength of several rules on the chains of ``gpusched
reproduce rmod``, five objectives; the second the path of two mean rewards under training, by mode, on
the tables of ``gpusched reproduce pama``. Numpy only.
"""

import argparse
from pathlib import Path

import numpy as np

from gpusched.reproduce import pama, rmod
from gpusched.sampling.controlled.markov import decode

WIDTH, HEIGHT, LEFT, TOP, ACROSS, DOWN = 820, 380, 62, 44, 480, 280
COLOURS = ("#1f6fb2", "#d9822b", "#3a9d5d", "#8a5cc2", "#8a94a1", "#c23b5a")
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


def panel(title, lines, x_label, y_label, x_range, y_range, x_ticks, y_ticks, log_x=False):
    """Return an SVG of named curves, each a pair of arrays."""

    def along(value):
        low, high = (np.log(v) if log_x else v for v in x_range)
        return LEFT + ACROSS * ((np.log(value) if log_x else value) - low) / (high - low)

    def up(value):
        return TOP + DOWN * (1 - (value - y_range[0]) / (y_range[1] - y_range[0]))

    body = ""
    for tick in x_ticks:
        body += f'<path class="grid" d="M{along(tick):.1f} {TOP}v{DOWN}"/><text x="{along(tick):.1f}" y="{TOP + DOWN + 18}" text-anchor="middle">{tick:g}</text>'
    for tick in y_ticks:
        body += f'<path class="grid" d="M{LEFT} {up(tick):.1f}h{ACROSS}"/><text x="{LEFT - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
    order = np.argsort([-up(y[-1]) for _, _, y in lines])[::-1]
    for i, (name, x, y) in enumerate(lines):
        points = " ".join(f"{along(a):.1f},{up(b):.1f}" for a, b in zip(x, y, strict=True))
        colour = COLOURS[i % len(COLOURS)]
        place = TOP + 14 + 24 * int(np.flatnonzero(order == i)[0])
        body += f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        body += f'<circle cx="{along(x[-1]):.1f}" cy="{up(y[-1]):.1f}" r="4" fill="{colour}"/>'
        body += f'<text x="{LEFT + ACROSS + 24}" y="{place}" style="fill:{colour};font-weight:600">{name}</text>'
    style = (
        "svg{--ink:#1b2430;--soft:#8a94a1}@media(prefers-color-scheme:dark){svg{--ink:#e8edf3;--soft:#7d8896}}"
        "text{font:13px system-ui,sans-serif;fill:var(--ink)}.t{font-weight:700}.grid{stroke:var(--soft);opacity:.35}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><style>{style}</style>'
        f'<text class="t" x="{LEFT}" y="24">{title}</text>{body}'
        f'<text x="{LEFT + ACROSS / 2}" y="{HEIGHT - 12}" text-anchor="middle">{x_label}</text>'
        f'<text transform="translate(16,{TOP + DOWN / 2}) rotate(-90)" text-anchor="middle">{y_label}</text></svg>\n'
    )


def decoding_figure(seeds=6, prompts=200):
    rules = {
        "worst-case weights (RMOD)": {}, "RMOD, 10 steps": {"paper_iterations": 10},
        "best worst value": {"rule": "maximin"}, "equal weights": {"rule": "fixed"},
    }  # fmt: skip
    found = {name: np.zeros(len(STRENGTHS)) for name in rules}
    for seed in range(seeds):
        rng = np.random.default_rng([3, seed])
        model = rmod.conflicting_chain(rng, 5, rmod.TOKENS, rmod.LENGTH)
        first = rng.integers(rmod.TOKENS, size=prompts)
        reference = model.earned(model.sample(first, rmod.LENGTH, rng))
        for name, given in rules.items():
            for i, strength in enumerate(STRENGTHS):
                settings = rmod.settings(5, **(given | {"strength": strength}))
                if i and name in ("best worst value", "equal weights"):
                    found[name][i] = found[name][0]  # they know no strength
                    continue
                tokens, _ = decode(model, first, rmod.LENGTH, settings, rng)
                rate = rmod.win_rate(model.earned(tokens), reference) / seeds
                found[name][i] = found[name][i] + rate
    for name in ("best worst value", "equal weights"):
        found[name][:] = found[name][0]
    lines = [(name, np.array(STRENGTHS), y) for name, y in found.items()]
    return panel(
        "Worst-case win rate over the reference, five objectives, %", lines, "strength", "%",
        (0.1, 100), (30, 80), (0.1, 1, 10, 100), (30, 40, 50, 60, 70, 80), log_x=True,
    )  # fmt: skip


def training_figure(seeds=4):
    names = {
        "PAMA, token": "PAMA, by token", "linear (MORLHF)": "equal weights", "MGDA": "MGDA",
        "tchebycheff": "Tchebycheff", "PAMA, batch_scalar": "PAMA, one scalar a batch",
    }  # fmt: skip
    lines = []
    for name, label in names.items():
        paths = [
            pama.train_table(np.random.default_rng([3, s]), pama.MODES[name], 1.0)
            for s in range(seeds)
        ]
        path = np.mean(paths, 0)
        smooth = np.stack([np.convolve(column, np.ones(5) / 5, "valid") for column in path.T], 1)
        lines.append((label, smooth[:, 0], smooth[:, 1]))
    return panel(
        "Two mean rewards while training, from the lower left", lines, "liked tokens", "tokens in order",
        (0, 1), (0, 1), (0, 0.25, 0.5, 0.75, 1), (0, 0.25, 0.5, 0.75, 1),
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parents[1] / "docs")
    args = parser.parse_args()
    (args.output / "controlled-decoding.svg").write_text(decoding_figure())
    (args.output / "pareto-alignment.svg").write_text(training_figure())


if __name__ == "__main__":
    main()
