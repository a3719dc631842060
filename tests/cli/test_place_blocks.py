"""``gpusched place blocks`` and ``simulate`` of its plan, through the command line."""

import json

import pytest
import yaml

from gpusched.cli.main import main

SPEC = """
model: llama-3.1-8b
weights_dtype: bf16
cluster:
  nodes:
    - {name: near, count: 2, gpu: t4, gpus: 1, region: us-east}
    - {name: far, count: 3, gpu: t4, gpus: 1, region: germany}
  network:
    regions_latency_ms: 45
workload: {profile: chat, rate_rps: 0.2, duration_s: 1200}
slo: {ttft_s: 20, tpot_ms: 600, attainment: 0.9}
"""


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["gpusched", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def spec(tmp_path):
    def write(change=lambda values: None):
        values = yaml.safe_load(SPEC)
        change(values)
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_a_plan_is_made_simulated_and_shown(monkeypatch, capsys, spec, tmp_path):
    plan, report = tmp_path / "plan.yaml", tmp_path / "report.html"
    code, out, _ = call(
        monkeypatch, capsys, "place", "blocks", spec(), "-o", plan, "--report", report,
        "--time-limit", 0, "--json",
    )  # fmt: skip
    assert code == 0
    made = json.loads(out)
    held = made["blocks"]["nodes"]
    covered = {b for n in held for b in range(n["first"], n["first"] + n["layers"])}
    assert covered == set(range(32))
    predicted, certificate = made["predicted"], made["certificate"]
    assert predicted["completed"] == predicted["requests"] > 100
    assert 0 < certificate["bound"] <= certificate["value"]
    assert made["runners_up"][0]["summary"].startswith("PETALS")
    html = report.read_text()
    assert "us-east" in html
    assert html.count("<svg") == 4
    code, out, _ = call(monkeypatch, capsys, "simulate", plan, "--json")
    again = json.loads(out)
    assert code == 0
    for key in ("requests", "slo_attainment", "ttft_s", "tpot_s", "e2e_s", "cost_usd", "servers"):
        assert again[key] == predicted[key]
    code, out, _ = call(monkeypatch, capsys, "simulate", plan, "--rate-scale", 4, "--json")
    assert json.loads(out)["queue_s"]["mean"] > again["queue_s"]["mean"]
    code, out, _ = call(monkeypatch, capsys, "simulate", plan, "--routing", "petals")
    assert code == 0
    assert "us-east" in out
    code, _, err = call(monkeypatch, capsys, "simulate", plan, "--routing", "ws-r")
    assert code == 2
    assert "did you mean ws-rr" in err


def test_answers_repeat_under_their_seed(monkeypatch, capsys, spec):
    outs = []
    for seed in (3, 3, 4):
        _, out, _ = call(monkeypatch, capsys, "place", "blocks", spec(), "--time-limit", 0, "--seed", seed, "--json")  # fmt: skip
        made = json.loads(out)
        for timed in ("wall_s", "requests_per_wall_s"):
            del made["predicted"][timed]
        del made["certificate"]["seconds"]
        outs.append(made)
    assert outs[0] == outs[1] != outs[2]


def test_what_is_impossible_is_named(monkeypatch, capsys, spec):
    def large(values):
        values["model"] = "llama-3.1-405b"

    def cut(values):
        values["cluster"]["network"] = {"links": [{"ends": ["front", r], "gbps": 0} for r in ("us-east", "germany")]}  # fmt: skip

    def half(values):
        values["cluster"]["network"] = {"links": [{"ends": ["front", "germany"], "gbps": 0}]}

    def half_too_large(values):
        half(values)
        values["cluster"]["nodes"][0]["count"] = 1

    for change, words in (
        (large, "infeasible: memory: llama-3.1-405b has 126 blocks"),
        (cut, "infeasible: network: no node can be reached from the front (us-east)"),
        (half_too_large, "far-0, far-1, far-2 cannot be reached"),
    ):
        code, out, err = call(monkeypatch, capsys, "place", "blocks", spec(change))
        assert (code, out) == (3, "")
        assert words in err
    code, out, _ = call(monkeypatch, capsys, "place", "blocks", spec(half), "--time-limit", 0, "--json")  # fmt: skip
    made = json.loads(out)
    assert code == 0
    assert {n["node"] for n in made["blocks"]["nodes"]} == {"near-0", "near-1"}
    assert any("far-0 is left out" in line for line in made["warnings"])


def test_a_node_too_small_for_a_block_is_left_out(monkeypatch, capsys, spec):
    def small(values):
        values |= {"model": "kimi-k2", "weights_dtype": "fp8"}
        values["cluster"]["nodes"] = [
            {"name": "big", "count": 2, "gpu": "h200_sxm", "gpus": 8, "region": "us-east"},
            {"name": "tiny", "gpu": "t4", "gpus": 1, "region": "us-east"},
        ]

    code, out, _ = call(monkeypatch, capsys, "place", "blocks", spec(small), "--time-limit", 0, "--json")  # fmt: skip
    assert code == 0
    made = json.loads(out)
    assert all(n["node"].startswith("big") for n in made["blocks"]["nodes"])
    assert any("tiny is left out" in line for line in made["warnings"])


def test_bad_plans_and_workloads_are_refused(monkeypatch, capsys, spec, tmp_path):
    plan = tmp_path / "plan.yaml"
    call(monkeypatch, capsys, "place", "blocks", spec(), "-o", plan, "--time-limit", 0, "--json")
    values = yaml.safe_load(plan.read_text())
    for change, code, words in (
        ({"first": 30, "layers": 5}, 2, "has 32"),
        ({"first": 0, "layers": 32}, 3, "memory: "),
    ):
        broken = json.loads(json.dumps(values))
        broken["blocks"]["nodes"][0] |= change
        path = tmp_path / "broken.yaml"
        path.write_text(yaml.safe_dump(broken))
        got, _, err = call(monkeypatch, capsys, "simulate", path)
        assert got == code
        assert words in err
    twice = json.loads(json.dumps(values))
    twice["blocks"]["nodes"].append(twice["blocks"]["nodes"][0])
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(twice))
    got, _, err = call(monkeypatch, capsys, "simulate", tmp_path / "twice.yaml")
    assert got == 2
    assert "named twice" in err

    def sessions(values):
        values["workload"]["profile"] = "agent"

    got, _, err = call(monkeypatch, capsys, "place", "blocks", spec(sessions))
    assert got == 2
    assert "after the answer" in err
