"""Pages of the gateway, and the status page in a real browser."""

import json
import random
import re
import shutil
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from observed import Fleet, make_exchange, make_plan, random_exchange, refused
from prometheus_text import parse

from gpusched.gateway.access.access import Access
from gpusched.gateway.exchange import Refusal
from gpusched.gateway.observe.pages import Page, Pages, status_page
from gpusched.gateway.observe.recorder import Recorder

BROWSER = next(
    (b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None
)
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
)


@pytest.fixture(scope="module")
def gateway():
    """A recorder that has seen two minutes of traffic, names hostile."""
    fleet = Fleet()
    fleet.engines[0].url = "http://" + HOSTILE
    fleet.engines[1].ejected, fleet.engines[1].ejections = True, 2
    recorder = Recorder(
        make_plan(slo={HOSTILE: {"ttft_ms": 300, "share": 0.5}, "b": {"e2e_s": 60, "share": 0.5}}),
        fleet,
    )
    rng, now, number = random.Random(1), time.monotonic(), 0
    for second in range(120):
        for _ in range(20):
            exchange = random_exchange(rng, number, now - 120 + second)
            recorder.opened(exchange, exchange.received_s)
            recorder.ended(exchange, now - 120 + second)
            number += 1
        fleet.holding = second // 10
        recorder.tick(now - 119 + second)
    bad = refused(Refusal(429, "x", "requests", HOSTILE), client=HOSTILE, now_s=now)
    recorder.opened(bad, now)
    recorder.ended(bad, now)
    return recorder


def ask(pages, target, method=b"GET"):
    return pages.answer(make_exchange(method=method, target=target, headers=[]))


def test_pages(gateway):
    pages = Pages(gateway, Access())
    for target in (b"/", b"/status", b"/status?x=1"):
        page = ask(pages, target)
        assert page.content_type == "text/html; charset=utf-8"
        assert b"default-src 'none'" in dict(page.headers)[b"content-security-policy"]
    metrics = ask(pages, b"/metrics")
    assert metrics.content_type.startswith("text/plain; version=0.0.4")
    assert len(parse(metrics.body.decode())) > 30
    status = json.loads(ask(pages, b"/status.json").body)
    assert len(status["history"]) == 120
    assert ask(pages, b"/v1/models") is None
    assert ask(pages, b"/metrics", b"POST").status == 405


def test_pages_ask_access():
    class Closed:
        def look(self, exchange):
            return Refusal(401, "key")

    pages = Pages(None, Closed())
    for target in (b"/", b"/metrics", b"/status", b"/status.json"):
        assert ask(pages, target).status == 401


def test_the_page_is_self_contained():
    page = status_page().decode()
    assert not re.search(r"url\(|@import|src\s*=", page)
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]
    assert len(page) < 30_000


class Served(ThreadingHTTPServer):
    def __init__(self, pages):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path == "/phone":
                    page = Page(200, "text/html", PHONE, ())
                else:
                    page = ask(pages, self.path.encode()) or Page(404, "text/plain", b"no")
                self.send_response(page.status)
                self.send_header("content-type", page.content_type)
                for name, value in page.headers:
                    if name != b"x-frame-options":
                        text = value.decode().replace("frame-ancestors 'none'", "frame-ancestors *")
                        self.send_header(name.decode(), text)
                self.end_headers()
                self.wfile.write(page.body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


PHONE = b"""<iframe id=f src=/status style='width:390px;height:800px;border:0'></iframe><script>
setInterval(function(){var d=f.contentDocument.documentElement;
document.body.dataset.width=d.scrollWidth;document.body.dataset.ready=d.dataset.ready},100)</script>"""


@pytest.fixture
def served(gateway):
    server = Served(Pages(gateway, Access()))
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def dump(url, profile):
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", f"--user-data-dir={profile}", "--virtual-time-budget=4000",
        "--window-size=1200,900", "--dump-dom", url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium installed")
def test_the_browser_draws_what_the_recorder_saw(gateway, served, tmp_path):
    dom = dump(served + "/", tmp_path / "profile")
    assert 'data-ready="1"' in dom
    assert re.search("<title>(.*?)</title>", dom).group(1) == "gpusched: status"
    assert "<img" not in dom
    assert "Gateway of llama-3.1-8b" in dom
    assert dom.count("<figure>") == 6
    lines = re.findall(r'<polyline class="line c\d" points="([^"]+)"', dom)
    assert len(lines) == 9
    for points in lines:
        pairs = [tuple(map(float, pair.split(","))) for pair in points.split()]
        assert len(pairs) > 100
        assert all(84 <= x <= 640 and 0 <= y <= 192.1 for x, y in pairs)
    assert dom.count('class="meter') == 4
    assert '<span class="state out">ejected</span>' in dom
    met = sum(sum(r["met"]) for r in list(gateway.history.rows)[-60:])
    judged = met + sum(sum(r["missed"]) for r in list(gateway.history.rows)[-60:])
    shown = float(re.search(r"<b>([\d.]+) %</b><span>met, last minute", dom).group(1))
    assert shown == pytest.approx(100 * met / judged, abs=0.6)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium installed")
def test_a_phone_needs_no_sideways_scroll(served, tmp_path):
    dom = dump(served + "/phone", tmp_path / "profile")
    assert 'data-ready="1"' in dom
    assert int(re.search(r'data-width="(\d+)"', dom).group(1)) <= 390
