"""The pictures of the pages on mixture-of-experts layers, drawn from the reruns of the papers.

python benchmarks/moe_figures.py [--traces FOLDER] [NAME ...]
"""

import argparse
import re
from html import escape
from pathlib import Path

from gpusched.reproduce.claim import Setting
from gpusched.reproduce.registry import reproduce

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = {
    "experts": ("saving", "place-experts.svg"),
    "findep": ("speed-up", "expert-overlap.svg"),
    "probe": ("shift", "expert-balancing.svg"),
}
LIGHT = "--ink:#1b2430;--soft:#5b6776;--grid:#e4e8ee;--c0:#1f6fb2;--c1:#d9822b;--c2:#2a8f6b;--c3:#8e5bb5;--c4:#b3476c;--c5:#6b7785"
DARK = "--ink:#e8edf3;--soft:#9aa7b6;--grid:#2b3542;--c0:#5aa9e6;--c1:#f0a860;--c2:#5cc9a0;--c3:#b893dd;--c4:#e383a6;--c5:#98a5b3"
STYLE = (
    f"svg{{{LIGHT}}}@media(prefers-color-scheme:dark){{svg{{{DARK}}}}}"
    "text{font:12px system-ui,sans-serif;fill:var(--soft)}.t{font-weight:700;fill:var(--ink)}"
    ".grid{stroke:var(--grid)}.line{fill:none;stroke-width:2.2}.rule{stroke:var(--soft);stroke-dasharray:6 4}"
    + "".join(f".line.c{i}{{stroke:var(--c{i})}}.k{i}{{fill:var(--c{i})}}" for i in range(6))
)


def standalone(figure: str) -> str:
    """Return a chart of ``report.svg`` as a file of its own, title and legend inside."""
    title = re.search(r"<figcaption>(.*?)</figcaption>", figure).group(1)
    body = re.search(r"<svg[^>]*>(.*)</svg>", figure, re.S).group(1)
    names = re.findall(r'<i class="c(\d)"></i>(.*?)</span>', figure)
    legend, x, y = "", 58, 341
    for colour, name in names:
        width = 32 + 7 * len(name)
        if x + width > 640:
            x, y = 58, y + 18
        legend += f'<rect class="k{colour}" x="{x}" y="{y - 11}" width="12" height="12"/>'
        legend += f'<text x="{x + 17}" y="{y}">{name}</text>'
        x += width
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -20 640 {y + 31}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<text class="t" x="58" y="-4">{title}</text>{body}{legend}</svg>\n'
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(PICTURES), metavar="NAME")
    parser.add_argument("--traces", type=Path)
    args = parser.parse_args()
    for name in args.names:
        chart, file = PICTURES[name]
        charts = reproduce(name, Setting(traces=args.traces)).charts
        (DOCS / file).write_text(standalone(charts[chart]), encoding="utf-8")
        print(DOCS / file)


if __name__ == "__main__":
    main()
