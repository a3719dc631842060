"""A cascade planned and simulated as its users do."""

import csv
import json

import numpy as np
import pytest
import yaml
from test_cli import gpusched

SPEC = {
    "model": "llama-3.1-70b",
    "weights_dtype": "fp8",
    "cascade": {
        "before": [{"model": "llama-3.1-8b"}],
        "scores": "scores.csv",
        "quality": 70,
        "thresholds_per_stage": 4,
    },
    "cluster": {"nodes": [{"gpu": "h100_sxm", "gpus": 4}]},
    "workload": {"profile": "chat", "rate_rps": 6, "duration_s": 40},
    "slo": {"e2e_s": 60, "attainment": 0.9},
    "search": {"max_num_batched_tokens": [8192]},
}


@pytest.fixture
def spec(tmp_path):
    hard = np.random.default_rng(0).random(60)
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["llama-3.1-8b", "llama-3.1-70b"])
        writer.writerows(np.stack([90 - 60 * hard, 95 - 20 * hard], axis=1).round(1).tolist())
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    return path


def test_a_planned_cascade_is_simulated_from_its_file(spec, tmp_path):
    plan, page = tmp_path / "plan.yaml", tmp_path / "page.html"
    done = gpusched("plan", spec, "-o", plan, "--report", page, "--json")
    document = json.loads(done.stdout)
    stages = document["cascade"]["stages"]
    assert document["predicted"]["quality"] >= 65
    assert stages[-1].get("threshold") is None
    assert sum(choice["chosen"] for choice in document["cascade"]["front"]) <= 1
    again = json.loads(gpusched("simulate", plan, "--json").stdout)
    assert again["e2e_s"] == document["predicted"]["e2e_s"]
    assert again["slo_attainment"] == document["predicted"]["slo_attainment"]
    assert "Cascade plan" in page.read_text()


def test_a_floor_that_nobody_reaches_says_how_far_one_gets(spec):
    values = yaml.safe_load(spec.read_text())
    values["cascade"]["quality"] = 99
    spec.write_text(yaml.safe_dump(values))
    done = gpusched("plan", spec, code=3)
    assert "the best thresholds reach" in done.stderr


def test_a_missing_column_is_named(spec):
    (spec.parent / "scores.csv").write_text("llama-3.1-8b\n1.0\n")
    done = gpusched("plan", spec, code=2)
    assert "no column 'llama-3.1-70b'" in done.stderr
