"""The review as a small static site: works from a folder, without any other server or network."""

from html import escape
from importlib import resources
from pathlib import Path

from gpusched.report.html import page
from gpusched.review.contents import Contents, plain_title, short_name
from gpusched.review.links import module_file
from gpusched.review.paper import Paper
from gpusched.review.picture import COLOURS, draw
from gpusched.review.rss import render_rss
from gpusched.review.verdicts import Rerun

HOLDS = {True: "yes", False: "no", None: "not judged"}


def render_site(contents: Contents, root: Path, address: str) -> dict[str, str]:
    """Return the site's files by name.

    Args:
        contents: of the review.
        root: folder of the repository, of which implementations and pages are shown.
        address: where the site will stand, for the feed.
    """
    files = {"index.html": _index(contents), "feed.xml": render_rss(contents, address)}
    for paper in contents.papers.values():
        shown = {}
        if paper.page is not None and (root / paper.page).is_file():
            shown[paper.page] = root / paper.page
        if paper.module is not None and (file := module_file(root, paper.module)) is not None:
            shown[paper.module] = file
        for name, file in shown.items():
            files[_source_name(name)] = _source(name, file)
        files[entry_name(paper)] = _entry(contents, paper, list(shown))
    return files


def entry_name(paper: Paper) -> str:
    """Return the file of a paper's entry."""
    return f"paper-{paper.arxiv.replace('/', '-')}.html"


def _index(contents: Contents) -> str:
    snapshot = contents.field.snapshot
    days = "".join(
        f"<dt>{day}</dt><dd>{'<br>'.join(_title_link(p) for p in papers)}</dd>"
        for day, papers in contents.recent()
    )
    buttons = "".join(
        f'<button type="button" data-front="{f.front}" aria-pressed="true">'
        f'<span class="swatch f{i % COLOURS}"></span>{escape(contents.name(f.front))}</button>'
        for i, f in enumerate(snapshot.fronts)
    )
    fronts = "".join(
        f'<h3 id="front-{f.front}"><span class="swatch f{i % COLOURS}"></span>'
        f"{escape(contents.name(f.front))}</h3>"
        f'<p class="soft">{f.status} · {_count(len(f.papers), "paper")} · density '
        f"{f.density:.2f}</p><p>{escape(contents.narrative(f))}</p>"
        f"<p>{', '.join(_short_link(contents.papers[a]) for a in f.papers)}</p>"
        f"<p>{_tags(f.methods)}</p>"
        for i, f in enumerate(snapshot.fronts)
    )
    bridges = "".join(
        f"<tr><td>{_short_link(contents.papers[b.arxiv])}</td>"
        f'<td data-name="score">{b.score:.2f}</td>'
        f'<td data-name="from">{escape(contents.name(b.front))}</td>'
        f'<td data-name="to">{escape("; ".join(contents.name(j) for j in b.joins))}</td>'
        f'<td data-name="carries">{(b.carries or 0):.0%}</td></tr>'
        for b in snapshot.bridges
    )
    ranked = sorted(contents.papers.values(), key=lambda p: (p.day, p.arxiv), reverse=True)
    entries = "".join(_row(contents, p) for p in ranked)
    differing = "".join(f"<li>{escape(line)}</li>" for line in contents.differences)
    against = ""
    if contents.published is not None:
        against = (
            f"<section><h2>Against the snapshot of {contents.published.date}</h2>"
            + (f"<ul>{differing}</ul>" if differing else "<p>No difference.</p>")
            + "</section>"
        )
    waiting = (
        f'<p class="soft">{_count(contents.waiting, "candidate")} waiting for a human.</p>'
        if contents.waiting
        else ""
    )
    body = (
        f"<section><h1>The field, as of {snapshot.date}</h1><p>"
        f"{_count(len(contents.papers), 'paper')} on operations research for serving generative "
        f"AI, in {_count(len(snapshot.fronts), 'front')}; what is implemented was rerun.</p>"
        '<nav><a href="#recent">Recent</a><a href="#map">Map</a><a href="#fronts">Fronts</a>'
        '<a href="#bridges">Bridges</a><a href="#papers">Papers</a><a href="feed.xml">RSS</a></nav>'
        f'</section><section id="recent"><h2>Recent</h2><dl class="days">{days}</dl>{waiting}'
        '</section><section id="map"><h2>Map</h2><div class="graph"><div class="tools">'
        f'<input id="find" type="search" placeholder="find a paper" aria-label="Find a paper">'
        '<button type="button" id="closer">closer</button>'
        f'<button type="button" id="whole">whole</button>{buttons}</div>'
        f"{draw(contents, 'paper-{id}.html')}"
        '<p id="about" class="soft" aria-live="polite">Dots grow with the scores, dashed rings are '
        "bridges. Point at a paper to see what it is tied to; choose it to read on.</p></div>"
        f'</section><section id="fronts"><h2>Fronts</h2>{fronts}</section>'
        '<section id="bridges"><h2>Bridges</h2><p class="soft">Papers whose ties spread over '
        "several fronts. Score: participation coefficient; carries: share of the ties between its "
        'front and the first of the others.</p><div class="scroll entries"><table><thead><tr>'
        "<th>paper</th><th>score</th><th>from</th><th>to</th><th>carries</th></tr></thead>"
        f"<tbody>{bridges}</tbody></table></div></section>"
        '<section id="papers"><h2>Papers</h2><div class="scroll entries"><table><thead><tr>'
        "<th>paper</th><th>takeaway</th><th>M</th><th>P</th><th>I</th><th>verdict</th></tr></thead>"
        f"<tbody>{entries}</tbody></table></div></section>{against}"
        f"<script>{_file('review.js')}</script>"
    )
    return page("Field map", body, _head())


def _row(contents: Contents, paper: Paper) -> str:
    marks = paper.scores
    cells = "".join(
        f'<td class="n" data-name="{name}">{getattr(marks, name) if marks else ""}</td>'
        for name in ("method", "practice", "impact")
    )
    return (
        f"<tr><td>{_title_link(paper)}</td><td>{escape(paper.takeaway or '')}</td>{cells}"
        f"<td>{_verdict(contents.rerun(paper))}</td></tr>"
    )


def _entry(contents: Contents, paper: Paper, shown: list[str]) -> str:
    front = contents.field.front_of(paper.arxiv)
    address = f"https://arxiv.org/abs/{paper.arxiv}"
    facts = [
        ("arXiv", f'<a href="{escape(address)}">{escape(paper.arxiv)}</a>'),
        ("date", f"{paper.updated}" + (f" (version {paper.version})" if paper.version else "")),
        ("authors", escape(", ".join(paper.authors))),
        ("affiliations", escape(", ".join(paper.affiliations))),
        ("front", f'<a href="index.html#front-{front}">{escape(contents.name(front))}</a>'),
        ("methods", _tags(paper.methods)),
        ("problems", _tags(paper.problems)),
        ("role of language models", _tags(paper.llm_role)),
        ("flags", escape(", ".join(paper.flags))),
    ]
    if paper.scores is not None:
        s = paper.scores
        facts.append(("scores", f"method {s.method}, practice {s.practice}, impact {s.impact}"))
    if shown:
        links = (f'<a href="{_source_name(n)}">{escape(n)}</a>' for n in shown)
        facts.append(("here", ", ".join(links)))
    rows = "".join(f'<tr><th>{k}</th><td class="words">{v}</td></tr>' for k, v in facts if v)
    warning = ""
    if paper.status == "withdrawn":
        warning += f'<p class="warning">Withdrawn on {paper.withdrawn}.</p>'
    if paper.newer is not None:
        warning += (
            f'<p class="warning">A newer version of {paper.newer.updated} is not described here '
            "yet.</p>"
        )
    body = (
        '<nav><a href="index.html">Field map</a></nav>'
        f"<section><h1>{escape(plain_title(paper))}</h1>{warning}"
        f"<p>{escape(paper.takeaway or '')}</p>"
        f'<div class="scroll claims"><table class="facts"><tbody>{rows}</tbody></table></div></section>'
    )
    rerun = contents.rerun(paper)
    if rerun is not None:
        body += _claims(rerun)
    return page(f"{short_name(paper)}: field map", body, _head())


def _claims(rerun: Rerun) -> str:
    rows = "".join(
        f"<tr><th>{escape(c.claim)}</th>"
        f'<td data-name="published">{escape(f"{c.published} {c.unit}".strip())}</td>'
        f'<td data-name="ours">{escape(f"{c.ours} {c.unit}".strip())}</td>'
        f'<td data-name="holds" class="{HOLDS[c.holds]}">{HOLDS[c.holds]}</td>'
        f"<td class='words'>{escape(c.differences)}</td></tr>"
        for c in rerun.claims
    )
    when = f" on {rerun.run_on}" if rerun.run_on else ""
    return (
        f"<section><h2>Rerun {_verdict(rerun)}</h2><p>{rerun.holding} of {rerun.judged} claims "
        f"hold. <code>gpusched reproduce {escape(rerun.name)}</code> took {rerun.seconds:.0f} s"
        f'{when}.</p><div class="scroll claims"><table><thead><tr><th>claim</th><th>published</th>'
        "<th>ours</th><th>holds</th><th>differences</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _source(name: str, file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    body = (
        '<nav><a href="index.html">Field map</a></nav>'
        f"<section><h1>{escape(name)}</h1><pre class='source'>{escape(text)}</pre></section>"
    )
    return page(name, body, _head())


def _verdict(rerun: Rerun | None) -> str:
    if rerun is None:
        return '<span class="verdict untested">not rerun</span>'
    kind = "untested" if rerun.verdict == "not testable here" else rerun.verdict
    return f'<span class="verdict {kind}">{escape(rerun.verdict)}</span>'


def _title_link(paper: Paper) -> str:
    return f'<a href="{entry_name(paper)}">{escape(plain_title(paper))}</a>'


def _short_link(paper: Paper) -> str:
    return f'<a href="{entry_name(paper)}">{escape(short_name(paper))}</a>'


def _source_name(name: str) -> str:
    return f"source-{name.replace('/', '-')}.html"


def _tags(tags: tuple[str, ...]) -> str:
    return "".join(f'<span class="tag">{escape(t.replace("_", " "))}</span>' for t in tags)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _head() -> str:
    feed = '<link rel="alternate" type="application/rss+xml" title="Field map" href="feed.xml">'
    icon = '<link rel="icon" href="data:,">'
    return f"{feed}{icon}<style>{_file('review.css')}</style>"


def _file(name: str) -> str:
    return resources.files("gpusched.review").joinpath(name).read_text(encoding="utf-8")
