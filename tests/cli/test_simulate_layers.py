"""``gpusched simulate`` on a plan of layers."""

import json
from pathlib import Path

import pytest
import yaml

from gpusched.cli.main import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "pipelines.yaml"


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["gpusched", "simulate", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.mark.parametrize("routing", ["iwrr", "swarm", "random", "shortest-queue"])
def test_figures_of_a_plan(monkeypatch, capsys, routing):
    code, out, _ = call(monkeypatch, capsys, EXAMPLE, "--json", "--routing", routing)
    assert code == 0
    figures = json.loads(out)
    assert figures["completed"] == figures["requests"] > 200
    assert 0 < figures["slo_attainment"] <= 1
    assert figures["ttft_s"]["p50"] < figures["ttft_s"]["p99"]
    assert figures["cost_usd"] > 0
    assert figures["energy_kwh"] > 0
    hours = 12 * figures["simulated_s"] / 3600
    assert figures["gpu_hours"] == pytest.approx(hours)
    assert len(figures["nodes"]) == 12


def test_table_and_determinism(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, EXAMPLE, "--rate-scale", "0.5")
    assert code == 0
    for word in ("TTFT", "l4-7", "KV cache peak"):
        assert word in out
    first = json.loads(call(monkeypatch, capsys, EXAMPLE, "--json", "--seed", "3")[1])
    second = json.loads(call(monkeypatch, capsys, EXAMPLE, "--json", "--seed", "3")[1])
    for figures in (first, second):
        for name in ("wall_s", "requests_per_wall_s"):
            del figures[name]
    assert first == second


def test_options_without_effect(monkeypatch, capsys):
    code, _, err = call(monkeypatch, capsys, EXAMPLE, "--batching", "vllm")
    assert code == 2
    assert "--batching: has no effect on a plan of layers" in err
    code, _, err = call(monkeypatch, capsys, EXAMPLE, "--routing", "iwr")
    assert code == 2
    assert "iwrr" in err


def test_gap_in_the_layers(monkeypatch, capsys, tmp_path):
    plan = yaml.safe_load(EXAMPLE.read_text())
    plan["layers"]["nodes"][0]["layers"] = 13
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    code, _, err = call(monkeypatch, capsys, path)
    assert code == 2
    assert "no pipeline" in err
