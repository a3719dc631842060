"""The newest papers as an RSS 2.0 feed."""

from datetime import UTC, date, datetime, time
from email.utils import format_datetime
from xml.sax.saxutils import escape

from gpusched.review.contents import Contents, plain_title

ITEMS = 50


def render_rss(contents: Contents, address: str) -> str:
    """Return the feed; the same store always gives the same feed.

    Args:
        contents: of the review.
        address: where the site stands.
    """
    address = address.rstrip("/") + "/"
    ranked = sorted(contents.papers.values(), key=lambda p: (p.day, p.arxiv), reverse=True)
    items = ""
    for paper in ranked[:ITEMS]:
        rerun = contents.rerun(paper)
        words = (paper.takeaway or "") + (f" Rerun here: {rerun.verdict}." if rerun else "")
        categories = "".join(f"<category>{escape(m)}</category>" for m in paper.methods)
        items += (
            f"<item><title>{_text(plain_title(paper))}</title>"
            f"<link>https://arxiv.org/abs/{escape(paper.arxiv)}</link>"
            f'<guid isPermaLink="false">arxiv:{escape(paper.arxiv)}</guid>'
            f"<pubDate>{_when(paper.day)}</pubDate>"
            f"<description>{_text(escape(words))}</description>{categories}</item>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<rss version="2.0" '
        'xmlns:atom="http://www.w3.org/2005/Atom"><channel>'
        f"<title>Field map</title><link>{_text(address)}</link>"
        "<description>Operations research for serving generative AI: what is new.</description>"
        f'<atom:link href="{_text(address)}feed.xml" rel="self" type="application/rss+xml"/>'
        f"<lastBuildDate>{_when(contents.field.snapshot.date)}</lastBuildDate>"
        f"{items}</channel></rss>\n"
    )


def _when(day: date) -> str:
    return format_datetime(datetime.combine(day, time(), UTC))


def _text(value: str) -> str:
    """Return words as XML; characters that XML forbids are left out."""
    kept = "".join(c for c in value if c in "\t\n\r" or c >= " ")
    return escape(kept, {'"': "&quot;"})
