"""The built review: what is on its pages, what hostile words do there, what --check finds."""

import html.parser
import json
import re
import shutil
import subprocess
import threading
from datetime import date
from pathlib import Path
from typing import ClassVar
from urllib.error import HTTPError
from urllib.request import urlopen
from xml.etree import ElementTree

import pytest

from gpusched.errors import InputError
from gpusched.reproduce.registry import PAPERS
from gpusched.review.build import build, check
from gpusched.review.contents import gather, plain_title
from gpusched.review.decide import accept
from gpusched.review.markdown import text
from gpusched.review.picture import HEIGHT, WIDTH, layout
from gpusched.review.serve import site_server
from gpusched.review.store import load_store
from gpusched.review.verdicts import load_reruns

pytest.importorskip("networkx")
ROOT = Path(__file__).parents[2]
BROWSER = next(
    (b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None
)
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">|[x](javascript:alert(1))"
MARKS = {"method": 5, "practice": 5, "impact": 5}


@pytest.fixture
def made(repository):
    """The repository with its review built, and one accepted paper with hostile words in it."""
    folder = repository / "review"
    store = load_store(folder)
    helix = store.paper("2406.01566")
    candidate = helix.model_copy(
        update={
            "arxiv": "2603.00001",
            "title": HOSTILE,
            "status": "candidate",
            "scores": None,
            "takeaway": None,
            "authors": (HOSTILE,),
            "affiliations": (HOSTILE,),
            "module": None,
            "page": None,
            "reproduce": None,
            "submitted": date(2026, 2, 1),
        }
    )
    store = store.save([*store.papers, candidate])
    accept(store, "2603.00001", date(2026, 2, 18), scores=MARKS, takeaway=HOSTILE)
    store = load_store(folder)
    site = repository / "site"
    return store, build(store, repository / "docs" / "field-map.md", site), site


def test_the_committed_page_is_up_to_date_and_in_order():
    done = check(load_store(ROOT / "review"), ROOT / "docs" / "field-map.md")
    assert done.shortcomings == ()
    assert len(done.contents.papers) == len(done.contents.reruns) == 17
    assert {p.arxiv for p in PAPERS.values() if p.arxiv} == {
        r.arxiv for r in done.contents.reruns.values()
    }


def test_the_committed_verdicts_follow_from_their_claims():
    for name, rerun in load_reruns(ROOT / "review").items():
        assert rerun.arxiv == PAPERS[name].arxiv
        assert rerun.run_on is not None
        assert rerun.seconds > 0


def test_every_paper_has_an_entry_with_claims(made):
    store, done, site = made
    for paper in done.contents.papers.values():
        entry = (site / f"paper-{paper.arxiv}.html").read_text()
        rerun = done.contents.rerun(paper)
        if rerun is None:
            continue
        assert f"{rerun.holding} of {rerun.judged} claims hold" in entry
        assert entry.count('data-name="ours"') == len(rerun.claims)
        assert f"source-{paper.module}.html" in entry
        assert (site / f"source-{paper.module}.html").is_file()
    page = (store.root / "docs" / "field-map.md").read_text()
    for paper in store.reviewed:
        assert text(plain_title(paper)) in page


def test_links_of_the_site_and_of_the_page_lead_somewhere(made):
    _, _, site = made
    for file in site.glob("*.html"):
        for target in re.findall(r'<a [^>]*href="([^"]+)"', file.read_text()):
            if not target.startswith("https://arxiv.org/abs/"):
                name, _, anchor = target.partition("#")
                other = site / name if name else file
                assert other.is_file(), (file.name, target)
                assert not anchor or f'id="{anchor}"' in other.read_text()
        assert not re.search(r'(?:src|href)="?(?:https?:)?//(?!arxiv\.org/abs/)', file.read_text())


def test_hostile_words_are_words(made):
    store, _, site = made
    for file in [*site.glob("*.html"), store.root / "docs" / "field-map.svg"]:
        if not file.name.startswith("source-"):
            assert "<script>document" not in file.read_text()
            assert "<img" not in file.read_text()
    markdown = (store.root / "docs" / "field-map.md").read_text()
    assert "<script>" not in markdown
    assert "<img" not in markdown
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    feed = ElementTree.parse(site / "feed.xml")
    assert HOSTILE in [item.findtext("title") for item in feed.iter("item")]


def test_pages_are_well_formed(made):
    void = {"meta", "link", "input", "br", "line", "circle"}

    class Tags(html.parser.HTMLParser):
        stack: ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            if tag not in void:
                self.stack.append(tag)

        def handle_endtag(self, tag):
            if tag not in void:
                assert self.stack.pop() == tag

    _, _, site = made
    for file in site.glob("*.html"):
        Tags().feed(file.read_text())
        assert Tags.stack == [], file.name


def test_feed_is_rss(made):
    _, done, site = made
    root = ElementTree.parse(site / "feed.xml").getroot()
    assert (root.tag, root.get("version")) == ("rss", "2.0")
    channel = root.find("channel")
    assert all(channel.findtext(tag) for tag in ("title", "link", "description", "lastBuildDate"))
    items = channel.findall("item")
    assert len(items) == len(done.contents.papers)
    guids = [item.findtext("guid") for item in items]
    assert len(set(guids)) == len(guids)
    assert items[0].findtext("pubDate") == "Wed, 18 Feb 2026 00:00:00 +0000"


def test_the_same_store_gives_the_same_files(made, tmp_path):
    store, done, site = made
    again = build(store, tmp_path / "docs" / "field-map.md", tmp_path / "site")
    assert len(again.files) == len(done.files)
    for file in site.iterdir():
        assert (tmp_path / "site" / file.name).read_bytes() == file.read_bytes()


def test_pages_of_papers_that_went_are_removed(made):
    store, _, site = made
    store = store.save([p for p in store.papers if p.arxiv != "2603.00001"])
    build(store, store.root / "docs" / "field-map.md", site)
    assert not (site / "paper-2603.00001.html").exists()


def test_a_folder_with_other_files_is_left_alone(made, tmp_path):
    store, _, _ = made
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        build(store, store.root / "docs" / "field-map.md", tmp_path)
    assert (tmp_path / "mine.html").read_text() == "mine"


def spoil(repository, what):
    folder = repository / "review"
    papers = folder / "papers.yaml"
    match what:
        case "verdict":
            (folder / "verdicts" / "helix.json").unlink()
        case "module":
            papers.write_text(
                papers.read_text().replace("gpusched.planning.layers.planner", "gpusched.no.such")
            )
        case "page":
            (repository / "docs" / "place-layers.md").unlink()
        case "narrative":
            fronts = folder / "fronts.yaml"
            fronts.write_text(fronts.read_text().replace("- front: 29", "- front: 30"))
        case "old":
            papers.write_text(papers.read_text().replace("wrong judge", "poor judge"))
        case "rerun":
            papers.write_text(papers.read_text().replace("  reproduce: helix\n", ""))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("verdict", "2406.01566: no verdict of helix; run 'gpusched review verdicts helix'"),
        ("module", "2406.01566: module gpusched.no.such does not exist"),
        ("page", "2406.01566: page docs/place-layers.md does not exist"),
        ("narrative", "front 29: no narrative in fronts.yaml"),
        ("old", "not up to date; run 'gpusched review build'"),
        ("rerun", "but names no rerun"),
    ],
)
def test_check_finds(repository, what, words):
    page = repository / "docs" / "field-map.md"
    assert check(load_store(repository / "review"), page).shortcomings == ()
    spoil(repository, what)
    found = check(load_store(repository / "review"), page).shortcomings
    assert any(words in line for line in found), found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "reproduced"}, "verdict: 'reproduced', but its claims give 'partly'"),
        ({"name": "hellix"}, "unknown paper 'hellix'"),
        ({"claims": []}, "claims"),
        ({"verdict": "fine"}, "verdict: must be"),
        ({"extra": 1}, "extra: unknown key"),
    ],
)
def test_verdicts_edited_by_hand_are_refused(folder, change, words):
    path = folder / "verdicts" / "helix.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=re.escape(words)) as error:
        load_reruns(folder)
    assert "helix.json" in str(error.value)


def test_layout_keeps_dots_apart_and_inside():
    contents = gather(load_store(ROOT / "review"))
    places = layout(contents.field.graph.weights)
    assert (places >= 0).all()
    assert (places <= (WIDTH, HEIGHT)).all()
    for i, here in enumerate(places):
        for there in places[i + 1 :]:
            assert ((here - there) ** 2).sum() > 30**2


@pytest.fixture
def served(made):
    _, _, site = made
    server = site_server(site, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield site, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_site_is_served_on_this_machine(served, tmp_path):
    site, address = served
    with urlopen(f"{address}/") as answer:
        assert answer.read() == (site / "index.html").read_bytes()
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    (site / "folder").mkdir()
    for path in ("/../review/papers.yaml", "/folder/", "/no.html"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(address + path)
    with pytest.raises(InputError, match="cannot listen"):
        site_server(site, int(address.rsplit(":", 1)[1]))
    with pytest.raises(InputError, match="no site here"):
        site_server(tmp_path, 0)


EXPLORE = """<iframe id=f src=PAGE style='width:WIDEpx;height:800px;border:0'></iframe><script>
var found = {errors: []};
f.onload = function () {
  var w = f.contentWindow, d = f.contentDocument, q = function (s) { return [].slice.call(d.querySelectorAll(s)); };
  w.onerror = function (m) { found.errors.push(String(m)); };
  found.width = d.documentElement.scrollWidth; found.title = d.title;
  var svg = d.getElementById("graph");
  if (svg) {
    var dot = d.querySelector('.dot[data-id="2512.21487"]');
    dot.dispatchEvent(new w.PointerEvent("pointerenter", {pointerType: "mouse"}));
    found.about = d.getElementById("about").textContent;
    found.near = q(".tie.near").length; found.dim = q(".dot.dim").length;
    dot.dispatchEvent(new w.PointerEvent("pointerleave", {pointerType: "mouse"}));
    found.after = q(".dim").length;
    dot.closest("a").focus(); found.focus = q(".tie.near").length; dot.closest("a").blur();
    var button = d.querySelector('button[data-front="14"]');
    button.click(); found.hidden = q(".dot.dim").length; found.pressed = button.getAttribute("aria-pressed"); button.click();
    var find = d.getElementById("find");
    find.value = "carbon"; find.dispatchEvent(new w.Event("input")); found.named = q(".dot:not(.dim)").length;
    find.value = ""; find.dispatchEvent(new w.Event("input"));
    d.getElementById("closer").click(); found.closer = svg.getAttribute("viewBox");
    svg.dispatchEvent(new w.WheelEvent("wheel", {deltaY: -100, clientX: 100, clientY: 300, cancelable: true}));
    found.wheel = svg.getAttribute("viewBox");
    d.getElementById("whole").click(); found.whole = svg.getAttribute("viewBox");
    found.href = dot.closest("a").getAttribute("href"); found.dots = q(".dot").length;
  }
  document.body.dataset.found = JSON.stringify(found);
};</script>"""


def explore(served, tmp_path, page, wide):
    site, address = served
    (site / "explore.html").write_text(EXPLORE.replace("PAGE", page).replace("WIDE", str(wide)))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--enable-logging=stderr",
        "--window-size=1300,900", "--dump-dom", f"{address}/explore.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (site / "explore.html").unlink()
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    return json.loads(html.unescape(found[1]))


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium installed")
def test_the_map_can_be_explored(served, made, tmp_path):
    _, done, _ = made
    graph = done.contents.field.graph
    i = [p.arxiv for p in graph.papers].index("2512.21487")
    ties = int(graph.edges[i].sum())
    front = next(f for f in done.contents.field.snapshot.fronts if f.front == 14)
    found = explore(served, tmp_path, "index.html", 1200)
    assert found["errors"] == []
    assert found["title"] == "Field map"
    assert found["dots"] == len(graph.papers)
    assert found["near"] == found["focus"] == ties
    assert found["dim"] == len(graph.papers) - ties - 1
    assert f"tied to {ties} papers" in found["about"]
    assert "partly" in found["about"]
    assert found["after"] == 0
    assert (found["hidden"], found["pressed"]) == (len(front.papers), "false")
    assert found["named"] == 1
    assert float(found["closer"].split()[2]) == pytest.approx(630)
    assert float(found["wheel"].split()[2]) < 630
    assert found["whole"] == "0 0 900 560"
    assert found["href"] == "paper-2512.21487.html"


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium installed")
@pytest.mark.parametrize(
    "page",
    ["index.html", "paper-2406.01566.html", "paper-2603.00001.html", "source-docs-wait.md.html"],
)
def test_phones_need_no_sideways_scroll(served, tmp_path, page):
    found = explore(served, tmp_path, page, 390)
    assert found["errors"] == []
    assert found["width"] <= 390
    assert "owned" not in found["title"].replace(HOSTILE, "")
