"""Verdicts: the best policy, beyond chance and by enough to matter; the largest load of each."""

import html.parser
from typing import ClassVar

import numpy as np
import pytest

from gpusched.domain.plan import Plan
from gpusched.domain.slo import SloClasses
from gpusched.report.comparison import (
    footnote,
    label,
    render_comparison,
    short,
    show_comparison,
    verdict_lines,
    widest,
)
from gpusched.sim.compare import Curves, Estimate, Row, Variant, compare
from gpusched.sim.verdict import (
    best_of,
    capacities,
    cautions,
    material_difference,
    parting,
    verdicts,
)
from gpusched.statistics import mean_interval, pairwise

SLO = SloClasses.model_validate({"ttft_ms": 500, "attainment": 0.9})
PLAN = Plan.model_validate(
    {
        "model": "llama-3.1-8b",
        "weights_dtype": "bf16",
        "cluster": {"nodes": [{"name": "n", "gpu": "h100_sxm"}]},
        "pools": [{"name": "engines", "nodes": "n", "gpu": "h100_sxm", "replicas": 2}],
        "workload": {"profile": "chat", "rate_rps": 30, "duration_s": 60},
        "slo": {"ttft_ms": 500, "tpot_ms": 40, "attainment": 0.9},
    }
)
NO_CURVES = Curves({}, np.zeros(1), np.zeros(0))


def rows_of(table, warnings=()):
    """Rows from ``{rate: {policy: attainment of each replication}}``, the first the baseline."""
    rows = []
    for scale, policies in table.items():
        samples = [np.array(values) for values in policies.values()]
        against = pairwise(samples)
        for i, (name, values) in enumerate(policies.items()):
            mean, half = mean_interval(samples[i])
            d = against[i, 0] if i else None
            gap = Estimate(
                mean, half, d.mean if d else 0.0, d.half_width if d else 0.0, d.p if d else 1.0
            )
            figures = tuple(
                {"slo_attainment": v, "slo_attainment_by_class": {"default": v}, "e2e_s": {"mean": 1.0},
                 "warnings": list(warnings)}
                for v in values
            )  # fmt: skip
            flat = Estimate(1.0, 0.0, 0.0, 0.0, 1.0)
            estimates = dict.fromkeys(
                ("goodput_rps", "ttft_s.p99", "tpot_s.mean", "e2e_s.mean"), flat
            )
            estimates["slo_attainment"] = gap
            rows.append(
                Row(Variant(name, "random"), scale, 10.0 * scale, estimates, figures, NO_CURVES)
            )
    return rows


def names(rows):
    return [row.variant.batching for row in rows]


NOISE = np.array([0.01, -0.01, 0.02, -0.02, 0.0])


def test_the_best_the_equals_and_those_behind():
    rows = rows_of(
        {
            1.0: {
                "a": 0.50 + NOISE,
                "b": 0.80 + NOISE + 1e-3 * NOISE[::-1],
                "c": 0.801 + NOISE - 1e-3 * NOISE[::-1],
                "d": 0.60 - NOISE,
                "e": 0.79 - 3 * NOISE,
            }
        }
    )
    verdict = best_of(rows, SLO)
    assert names([verdict.best]) == ["c"]
    # b differs beyond chance but by less than a tenth of the misses allowed; e by chance.
    assert names(verdict.equals) == ["b", "e"]
    assert names([row for row, _ in verdict.behind]) == ["d", "a"]
    assert verdict.behind[1][1].mean == pytest.approx(-0.301)
    assert verdict.apart
    (line,) = verdict_lines(PLAN, rows)
    assert line.startswith("best for the SLO are b, c and e, not told apart (79.00% to 80.10%)")
    assert "30.10 ± " in line
    assert line.endswith("points ahead of a")


def test_a_baseline_among_the_best():
    rows = rows_of({1.0: {"a": 0.80 + NOISE, "b": 0.70 - NOISE, "c": 0.60 - NOISE}})
    (line,) = verdict_lines(PLAN, rows)
    assert line.startswith("best for the SLO is a (80.00%); next b, 10.00 ± ")


def test_no_difference_is_called_none():
    rows = rows_of({1.0: {"a": 0.95 + NOISE, "b": 0.955 - NOISE}})
    assert not best_of(rows, SLO).apart
    (line,) = verdict_lines(PLAN, rows)
    assert line == "no policy is told apart (95.00% to 95.50% attainment, 90% asked)"


def test_one_replication_is_called_too_few():
    rows = rows_of({1.0: {"a": [0.9], "b": [0.1]}})
    assert not best_of(rows, SLO).apart
    (line,) = verdict_lines(PLAN, rows)
    assert "--replications" in line


def test_many_policies_need_more_evidence():
    # Two policies are told apart; among ten the same difference may be chance.
    gap = np.array([0.02, 0.05, 0.01, 0.06, 0.04])
    base = 0.5 + NOISE
    few = rows_of({1.0: {"a": base, "b": base + gap}})
    rng = np.random.default_rng(0)
    others = {f"x{i}": base + gap / 2 + rng.normal(0, 0.02, 5) for i in range(8)}
    many = rows_of({1.0: {"a": base, "b": base + gap, **others}})
    assert best_of(few, SLO).apart
    assert few[1].verdict() == "better"
    assert many[1].verdict() == "noise"


def test_what_is_material_follows_the_objective():
    assert material_difference(SLO) == pytest.approx(0.01)
    assert material_difference(SloClasses.model_validate({"ttft_ms": 1, "attainment": 1})) == 0.0
    classes = {"chat": {"ttft_ms": 1, "attainment": 0.99}, "batch": {"e2e_s": 9, "attainment": 0.5}}
    assert material_difference(SloClasses.model_validate(classes)) == pytest.approx(0.001)
    assert "1 points, 10% of the misses" in footnote(SLO)


def test_neighbouring_loads_of_one_verdict_are_told_together():
    wide = {"a": 0.5 + NOISE, "b": 0.6 + 1.5 * NOISE}
    rows = rows_of({0.5: {"a": 0.99 + 0 * NOISE, "b": 0.99 + 0 * NOISE}, 1.0: wide, 1.5: wide,
                    2.0: {"a": 0.4 + NOISE, "b": 0.2 - NOISE}})  # fmt: skip
    lines = list(verdict_lines(PLAN, rows))
    assert lines[0].startswith("×0.5: no policy is told apart")
    assert lines[1].startswith("×1 to ×1.5: best for the SLO is b (60.00%), 10.00 ± ")
    assert lines[2].startswith("×2: best for the SLO is a (40.00%); next b, 20.00 ± ")
    assert [v.best.rate_scale for v in verdicts(rows, SLO)] == [0.5, 1.0, 1.5, 2.0]


def test_the_largest_load_that_keeps_the_objective():
    flat = 0.0 * NOISE
    rows = rows_of(
        {
            1.0: {"a": 1.0 + flat, "b": 1.0 + flat, "c": 0.99 + flat, "d": 0.80 + flat},
            2.0: {"a": 0.8 + NOISE, "b": 0.6 + NOISE, "c": 0.99 + flat, "d": 0.70 + flat},
        }
    )
    a, b, c, d = capacities(rows, SLO)
    assert a.rate_scale == pytest.approx(1.5)
    assert a.rate_rps == pytest.approx(15.0)
    assert 0 < a.half_width < 0.2
    assert a.difference is None
    assert b.rate_scale == pytest.approx(1.25)
    assert b.difference.mean == pytest.approx(-0.25, abs=0.01)
    assert c.rate_scale == np.inf
    assert d.rate_scale == -np.inf
    lines = list(verdict_lines(PLAN, rows))[-5:]
    assert "interpolated between the rates run" in lines[0]
    assert lines[1] == "  c: ×2 or more"
    assert lines[2].startswith("  a: ×1.500 ± ")
    assert "against the first" in lines[3]
    assert lines[4] == "  d: less than ×1"


def test_every_class_must_keep_its_objective():
    classes = SloClasses.model_validate(
        {"chat": {"ttft_ms": 1, "attainment": 0.9}, "batch": {"e2e_s": 9, "attainment": 0.5}}
    )
    rows = rows_of({1.0: {"a": [1.0, 1.0]}, 2.0: {"a": [0.9, 0.9]}})
    for row, batch in zip(rows, (1.0, 0.0), strict=True):
        for run in row.replications:
            run["slo_attainment_by_class"] = {"chat": 1.0, "batch": batch}
    (found,) = capacities(rows, classes)
    assert found.rate_scale == pytest.approx(1.5)


def test_warnings_are_told_once():
    warned = ["wait: 26.3 requests/s an engine are unstable", "a GPU was never measured"]
    rows = rows_of({1.0: {"a": [1.0, 1.0], "b": [1.0, 1.0]}, 2.0: {"a": [1.0, 1.0]}}, warned)
    for row in rows[:2]:
        for run in row.replications:
            run["warnings"] = [warned[1]]
    rows[2].replications[1]["warnings"] = ["wait: 27.9 requests/s an engine are unstable"]
    assert list(cautions(rows)) == [(warned[1], [1.0, 2.0]), (warned[0], [2.0])]


def test_policies_part_where_the_load_is_high():
    variants = [Variant("vllm", "least-tokens"), Variant("prefill-first", "least-tokens")]
    light = PLAN.model_copy(update={"workload": PLAN.workload.model_copy(update={"rate_rps": 25})})
    rows = compare(light, variants, replications=3)
    assert not best_of(rows, light.slo).apart
    said = []
    parted = parting(light, rows, replications=3, progress=said.append)
    assert parted is not None
    assert parted.apart
    assert parted.best.rate_scale > 1
    assert any("trying ×" in line for line in said)
    *_, line = verdict_lines(light, rows, parted)
    assert line.startswith(f"they part at ×{parted.best.rate_scale:g} (")
    assert "--rate-scale 1:" in line


def test_policies_that_are_the_same_never_part():
    variants = [Variant("vllm", "random"), Variant("vllm", "random", "none")]
    rows = compare(PLAN, variants, replications=2)
    assert parting(PLAN, rows, replications=2) is None


def test_labels_leave_out_what_all_share():
    rows = rows_of({1.0: {"vllm": [1.0], "/home/me/my.py:late+predictor=noisy:0.5": [1.0]}})
    assert [label(row.variant, rows) for row in rows] == ["vllm", "late noisy:0.5"]
    assert label(rows[0].variant, rows[:1]) == "vllm"
    assert short("mc-sf+margin=0.1+predictor=oracle") == "mc-sf+margin=0.1 oracle"


@pytest.fixture(scope="module")
def run():
    variants = [Variant(b, "least-tokens") for b in ("vllm", "mc-sf", "static")]
    return compare(PLAN, variants, rate_scales=(0.8, 1.2, 1.6), replications=3)


def test_the_page_shows_every_curve(run):
    page = render_comparison(PLAN, run)
    for title in (
        "TTFT: share of requests within",
        "TPOT: share of requests within",
        "E2E: share of requests within",
        "KV cache in use",
        "attainment, with 95 % confidence",
    ):
        figure = next(f for f in page.split("<figure>") if title in f.partition("</figcaption>")[0])
        curves = figure.partition("</figure>")[0]
        assert curves.count("<polyline") == 3, title
        for points in curves.split('points="')[1:]:
            pairs = points.partition('"')[0].split()
            assert 2 < len(pairs) <= 420
            assert "nan" not in points.partition('"')[0]
        assert curves.count("<polygon") == (3 if "confidence" in title else 0)
    assert "asked: 0.9" in page
    assert "TTFT ≤ 500.0 ms" in page
    for line in verdict_lines(PLAN, run):
        assert line.split(":")[0].strip() in page
    assert len(page) < 250_000
    Tags().feed(page)
    assert Tags.stack == []


class Tags(html.parser.HTMLParser):
    """Every tag that opens closes."""

    stack: ClassVar[list[str]] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "line", "polyline", "polygon"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "polyline", "polygon"):
            assert self.stack.pop() == tag


def test_the_curves_are_of_the_rate_with_most_to_see(run):
    spread = {}
    for row in run:
        spread.setdefault(row.rate_scale, []).append(row.estimates["slo_attainment"].mean)
    best = max(spread, key=lambda scale: max(spread[scale]) - min(spread[scale]))
    assert {row.rate_scale for row in widest(run)} == {best}


def test_the_table_is_printed_with_its_verdict(run, capsys):
    show_comparison(PLAN, run)
    printed = capsys.readouterr().out
    for words in ("attainment", "baseline", "×1.6", "mc-sf", "Holm", "largest rate that keeps 90%"):
        assert words in printed
