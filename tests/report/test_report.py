"""The report in a real browser: its content, its figures, its width."""

import html.parser
import re
import shutil
import subprocess
from typing import ClassVar

import numpy as np
import pytest

from gpusched.domain.spec import spec_from
from gpusched.planning.planner import plan_deployment
from gpusched.report.html import render_report
from gpusched.report.svg import Line, Scale, line_chart
from gpusched.report.thin import cumulative, over_time

BROWSER = next(
    (b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None
)
HOSTILE = "chat-</script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def answer():
    return plan_deployment(
        spec_from(
            {
                "model": "llama-3.1-8b",
                "cluster": {"nodes": [{"name": HOSTILE, "gpu": "h100_sxm", "gpus": 8}]},
                "workload": {"profile": "chat", "rate_rps": 20, "duration_s": 300},
                "slo": {"ttft_ms": 800, "tpot_ms": 30, "attainment": 0.95},
            }
        )
    )


@pytest.fixture(scope="module")
def page(answer):
    return render_report(answer.plan, answer.result)


def dump(path, profile, *options):
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={profile}", "--virtual-time-budget=2000", *options, "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_page_is_self_contained(page):
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", page)
    assert len(page) < 400_000
    assert "</script><script>" not in page.replace("</script></body>", "")


def test_page_is_well_formed(page):
    class Tags(html.parser.HTMLParser):
        stack: ClassVar[list[str]] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "line", "circle", "polyline", "br"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("line", "circle", "polyline"):
                assert self.stack.pop() == tag

    Tags().feed(page)
    assert Tags.stack == []


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium installed")
def test_browser_shows_the_answer_and_its_evidence(answer, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page)
    dom = dump(path, tmp_path / "profile", "--window-size=1200,900")
    plan = answer.plan
    figures = plan.predicted
    assert f"{plan.gpus} GPUs at ${plan.usd_per_hour:,.2f} an hour" in dom
    assert f"{figures['slo_attainment']:.2%}" in dom
    assert "owned" not in re.search("<title>(.*?)</title>", dom).group(1)
    lines = re.findall(r'<polyline[^>]*data-name="([^"]+)"[^>]*points="([^"]+)"', dom)
    assert {"TTFT", "TPOT", "E2E", "ITL", "running", "waiting"} <= {name for name, _ in lines}
    for name, points in lines:
        values = np.array([[float(v) for v in pair.split(",")] for pair in points.split()])
        assert len(values) > 10, name
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 640
    rules = [float(v) for v in re.findall(r'class="rule" data-at="([^"]+)"', dom)]
    assert 800 in rules
    assert 30 in rules
    assert f"<td>{figures['ttft_s']['p99'] * 1e3:,.1f}</td>" in dom or figures["ttft_s"]["p99"] >= 1
    for row in (*plan.pareto, *plan.runners_up):
        assert f"<td>{row.attainment:.2%}</td>" in dom
    assert "What was assumed" in dom


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium installed")
def test_phone_needs_no_sideways_scroll(page, tmp_path):
    path = tmp_path / "report.html"
    frame = tmp_path / "phone.html"
    path.write_text(page)
    frame.write_text(
        "<iframe id=f src=report.html style='width:390px;height:800px;border:0'></iframe><script>"
        "f.onload=()=>{document.body.dataset.width=f.contentDocument.documentElement.scrollWidth}</script>"
    )
    dom = dump(
        frame, tmp_path / "profile", "--allow-file-access-from-files", "--window-size=1200,900"
    )
    assert int(re.search(r'data-width="(\d+)"', dom).group(1)) <= 390


def test_curves_keep_their_ends():
    values = np.random.default_rng(0).lognormal(0, 1, 100_000)
    line = cumulative("x", values)
    assert len(line.x) < 500
    assert line.x[0] == values.min()
    assert line.x[-1] == values.max()
    assert line.y[-1] == 1.0
    for x, y in zip(line.x, line.y, strict=True):
        assert (values <= x).mean() == pytest.approx(y)


def test_thinned_series_keep_their_mean():
    edges = np.linspace(0, 100, 1201)
    series = np.random.default_rng(0).random(1200)
    line = over_time("x", edges, series)
    assert len(line.x) <= 300
    assert line.y.mean() == pytest.approx(series.mean())


def test_scales():
    assert Scale(1, 100, 0, 10, log=True)(10) == pytest.approx(5)
    assert Scale(0, 10, 0, 100).ticks() == [0, 2, 4, 6, 8, 10]
    assert "polyline" in line_chart(
        [Line("a", np.array([1.0]), np.array([0.0]))], title="t", x_label="x", y_label="y"
    )
