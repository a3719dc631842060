"""A reproduction as a self-contained page: claims, verdict, charts."""

from html import escape

from gpusched.report.html import page
from gpusched.reproduce.claim import Reproduction
from gpusched.reproduce.registry import Paper

HOLDS = {True: "yes", False: "no", None: "not judged"}


def render_reproduction(name: str, paper: Paper, result: Reproduction) -> str:
    """Return the page of a paper's rerun."""
    rows = "".join(
        f"<tr><th>{escape(c.claim)}</th><td>{escape(_with_unit(c.published, c.unit))}</td>"
        f"<td>{escape(_with_unit(c.ours, c.unit))}</td><td>{HOLDS[c.holds]}</td>"
        f"<td class='words'>{escape(c.differences)}</td></tr>"
        for c in result.claims
    )
    body = (
        f"<section><h1>{escape(name)}: {escape(result.verdict)}</h1>"
        f"<p class='question'>{escape(paper.citation)}</p>"
        "<div class='scroll'><table><thead><tr><th>claim</th><th>published</th><th>ours</th>"
        f"<th>holds</th><th>differences</th></tr></thead><tbody>{rows}</tbody></table></div>"
        f"<div class='charts'>{''.join(result.charts.values())}</div></section>"
    )
    return page(f"{name}: published and rerun", body)


def _with_unit(figure: str, unit: str) -> str:
    return f"{figure} {unit}".strip()
