"""``gpusched place layers``."""

import json
from pathlib import Path

import pytest
import yaml

from gpusched.cli.main import main
from gpusched.domain.plan import read_plan
from gpusched.planning.layers.check import check_placement

EXAMPLE = Path(__file__).parents[2] / "examples" / "unequal-gpus.yaml"


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["gpusched", "place", "layers", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    streams = capsys.readouterr()
    return code, streams.out, streams.err


@pytest.fixture
def spec(tmp_path):
    def write(**changes):
        values = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
        values["workload"]["duration_s"] = 120
        values["cluster"].update(changes)
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


def test_plan_holds_and_is_reproducible(monkeypatch, capsys, spec, tmp_path):
    plan_file, page = tmp_path / "plan.yaml", tmp_path / "page.html"
    options = ("--rank", "flow", "--json", "-o", plan_file, "--report", page)
    code, out, _ = call(monkeypatch, capsys, spec(), *options)
    assert code == 0
    values = json.loads(out)
    plan = read_plan(plan_file)
    assert plan.layers is not None
    held = {node.node: (node.first, node.layers) for node in plan.layers.nodes}
    flows = {flow.ends: flow.tokens_per_s for flow in plan.layers.flows}
    total = sum(flow for (origin, _), flow in flows.items() if origin == "front")
    unlimited = dict.fromkeys(flows, float("inf"))
    rates = dict.fromkeys(held, float("inf"))
    assert check_placement(
        layers=80, held=held, rates=rates, capacities=unlimited, flows=flows
    ) == []  # fmt: skip
    certificate = values["certificate"]
    assert total == pytest.approx(certificate["value"], rel=1e-5)
    assert certificate["value"] <= certificate["largest_found"] <= certificate["bound"]
    assert certificate["limits"]
    assert "<svg" in page.read_text(encoding="utf-8")
    again = json.loads(call(monkeypatch, capsys, spec(), "--rank", "flow", "--json")[1])
    assert again["layers"] == values["layers"]


def test_time_out_still_gives_a_plan(monkeypatch, capsys, spec):
    code, out, _ = call(monkeypatch, capsys, spec(), "--time-limit", "0", "--json")
    assert code == 0
    values = json.loads(out)
    assert values["certificate"]["gap"] >= 0
    assert sum(option["chosen"] for option in values["pareto"]) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": [{"name": "l4", "count": 2, "gpu": "l4", "gpus": 1, "region": "us-east"}]},
         ("memory", "80 layers")),
        ({"network": {"gbps": 10, "regions_gbps": 0, "front": "us-east"},
          "nodes": [{"name": "a100", "count": 3, "gpu": "a100_sxm_40gb", "gpus": 1,
                     "region": "us-east"},
                    {"name": "l4", "count": 8, "gpu": "l4", "gpus": 2, "region": "us-west"}]},
         ("links", "l4-0", "front")),
    ],
)  # fmt: skip
def test_infeasible_fleets_are_explained(monkeypatch, capsys, spec, changes, words):
    code, out, err = call(monkeypatch, capsys, spec(**changes))
    assert code == 3
    assert not out
    for word in words:
        assert word in err


def test_program_improves_bound_and_flow_or_keeps_them(monkeypatch, capsys, spec):
    """Out of time or not, the plan is at least as good and says its gap."""
    found = {}
    for seconds in (0, 1):
        code, out, _ = call(
            monkeypatch, capsys, spec(), "--rank", "flow", "--polish", seconds, "--json"
        )
        assert code == 0
        found[seconds] = json.loads(out)["certificate"]
    assert found[1]["value"] >= found[0]["value"] * (1 - 1e-9)
    assert found[1]["bound"] <= found[0]["bound"] * (1 + 1e-9)
    assert found[1]["bound"] >= found[1]["value"] * (1 - 1e-9)
    assert found[1]["gap"] >= 0
    assert "program of layers and flows" in found[1]["solver"]
    assert "program of layers" not in found[0]["solver"]


@pytest.mark.parametrize("objective", ["cost", "goodput"])
def test_cost_leaves_nodes_out_and_says_so(monkeypatch, capsys, spec, objective):
    path = spec()
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["objective"] = objective
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    code, out, _ = call(monkeypatch, capsys, path, "--json", "--time-limit", 2)
    assert code == 0
    plan = json.loads(out)
    used = {node["node"] for node in plan["layers"]["nodes"]}
    assert plan["predicted"]["slo_attainment"] >= 0.9
    text = " ".join(plan["assumptions"])
    assert f"objective {objective}" in text
    if objective == "cost":
        assert len(used) < 16
        left_out = next(line for line in plan["assumptions"] if line.startswith("nodes left out"))
        assert len(left_out.split(", ")) == 16 - len(used)
        assert not any(
            name in used for name in left_out.removeprefix("nodes left out: ").split(", ")
        )
