"""The graph of papers as SVG: dots by front, ties between them."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from gpusched.review.contents import Contents, plain_title, short_name

WIDTH, HEIGHT, MARGIN = 900, 560, 60
COLOURS = 6
STEPS = 400


def draw(contents: Contents, link: str = "") -> str:
    """Return the picture.

    Dots grow with the sum of scores; lines are ties that count as edges, wider where stronger.

    Args:
        contents: of the review.
        link: address of a paper's entry with ``{id}`` in it; no links where empty.
    """
    graph = contents.field.graph
    places = layout(graph.weights)
    fronts = [f.front for f in contents.field.snapshot.fronts]
    colour = {front: i % COLOURS for i, front in enumerate(fronts)}
    body = ""
    rows, columns = np.nonzero(np.triu(graph.edges))
    for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
        (x1, y1), (x2, y2) = places[i], places[j]
        wide = 0.8 + 1.1 * float(np.sqrt(graph.weights[i, j]))
        body += (
            f'<line class="tie" data-a="{graph.papers[i].arxiv}" data-b="{graph.papers[j].arxiv}" '
            f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke-width="{wide:.1f}"/>'
        )
    bridges = {b.arxiv for b in contents.field.snapshot.bridges}
    for (x, y), paper in zip(places, graph.papers, strict=True):
        front = contents.field.front_of(paper.arxiv)
        radius = 5 + (paper.scores.total if paper.scores else 3) / 3
        rerun = contents.rerun(paper)
        ring = f'<circle class="ring" r="{radius + 4:.1f}"/>' if paper.arxiv in bridges else ""
        dot = (
            f'<g class="dot f{colour[front]}" data-id="{paper.arxiv}" data-front="{front}" '
            f'data-title="{escape(plain_title(paper))}" '
            f'data-verdict="{escape(rerun.verdict if rerun else "not rerun")}" '
            f'transform="translate({x:.1f} {y:.1f})">{ring}<circle r="{radius:.1f}"/>'
            f'<text y="{radius + 14:.1f}">{escape(short_name(paper))}</text>'
            f"<title>{escape(plain_title(paper))}</title></g>"
        )
        address = link.replace("{id}", paper.arxiv.replace("/", "-"))
        body += f'<a href="{escape(address)}">{dot}</a>' if link else dot
    return (
        f'<svg id="graph" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Papers by front and the ties between them"><g id="view">{body}</g></svg>'
    )


def standalone(contents: Contents) -> str:
    """Return the picture as a file of its own, with its legend."""
    figure = draw(contents)
    body = figure[figure.index(">") + 1 : -len("</svg>")]
    legend = ""
    for i, front in enumerate(contents.field.snapshot.fronts):
        legend += (
            f'<g class="dot f{i % COLOURS}"><circle cx="18" cy="{HEIGHT + 12 + 22 * i}" r="6"/></g>'
            f'<text class="key" x="32" y="{HEIGHT + 16 + 22 * i}">'
            f"{escape(contents.name(front.front))}</text>"
        )
    tall = HEIGHT + 22 * len(contents.field.snapshot.fronts) + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" role="img" '
        f'aria-label="Papers by front and the ties between them"><style>{STYLE}</style>'
        f"{body}{legend}</svg>\n"
    )


def layout(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return places in pixels, shape (papers, 2): strong ties pull, all dots push.

    The algorithm is Fruchterman and Reingold's (1991) from a circle in the order of the leading
    eigenvectors, so that the picture of a graph is always the same.
    """
    n = len(weights)
    if n == 1:
        return np.array([[WIDTH / 2, HEIGHT / 2]])
    laplacian = np.diag(weights.sum(axis=1) + 1e-9) - weights
    _, vectors = np.linalg.eigh(laplacian)
    angles = 2 * np.pi * np.argsort(np.argsort(vectors[:, 1 % n], kind="stable")) / n
    at = np.column_stack([np.cos(angles), np.sin(angles)])
    strength = np.log1p(weights)
    ideal = 1.6 / np.sqrt(n)
    for heat in np.linspace(0.12, 0.004, STEPS):
        apart = at[:, None, :] - at[None, :, :]
        far = np.sqrt((apart**2).sum(axis=2)) + 1e-9
        push = apart / far[:, :, None] * (ideal**2 / far)[:, :, None]
        pull = apart / far[:, :, None] * (strength * far**2 / ideal)[:, :, None]
        force = (push - pull).sum(axis=1) - 0.6 * at
        size = np.sqrt((force**2).sum(axis=1, keepdims=True)) + 1e-12
        at = at + force / size * np.minimum(size, heat)
    low, high = at.min(axis=0), at.max(axis=0)
    unit: NDArray[np.float64] = (at - low) / np.maximum(high - low, 1e-9)
    places: NDArray[np.float64] = MARGIN + unit * (WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN)
    return places


STYLE = (
    "svg{--ink:#1b2430;--soft:#5b6776;--card:#fff;--tie:#9aa7b6;--f0:#1f6fb2;--f1:#d9822b;"
    "--f2:#2a8f6b;--f3:#8e5bb5;--f4:#b3476c;--f5:#6b7785}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e8edf3;--soft:#9aa7b6;--card:#1a212b;"
    "--tie:#4a5767;--f0:#5aa9e6;--f1:#f0a860;--f2:#5cc9a0;--f3:#b893dd;--f4:#e383a6;--f5:#98a5b3}}"
    "text{font:13px system-ui,sans-serif;fill:var(--ink);text-anchor:middle}.key{text-anchor:start}"
    ".tie{stroke:var(--tie);opacity:.55}.dot circle{stroke:var(--card);stroke-width:1.5}"
    ".dot .ring{fill:none;stroke:var(--soft);stroke-width:1.5;stroke-dasharray:3 3}"
    + "".join(f".f{i} circle:not(.ring){{fill:var(--f{i})}}" for i in range(COLOURS))
)
