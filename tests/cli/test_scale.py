"""Instances over time as users ask for them."""

import copy
import json

import pytest
import yaml
from test_cli import gpusched

SPEC = {
    "models": [{"model": "llama-3.1-8b", "gpu": "h100_sxm", "startup_s": 300,
                "engine": {"max_num_seqs": 16}}],
    "regions": [{"name": "east", "share": 0.7}, {"name": "west", "share": 0.3, "shift_h": 3}],
    "tiers": {
        "fast": {"ttft_s": 1, "attainment": 0.9, "share": 0.8},
        "batch": {"deadline_s": 7200, "attainment": 0.9, "share": 0.2},
    },
    "demand": {"profile": "summarize", "rate_rps": 4, "arrivals": "diurnal", "days": 1.2},
    "forecast": {"history_days": 1},
    "most": 8,
}  # fmt: skip


def write(tmp_path, **changes):
    path = tmp_path / "scale.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(SPEC), **changes}))
    return path


def test_policies_are_simulated_beside_each_other(tmp_path):
    page, plan = tmp_path / "page.html", tmp_path / "plan.yaml"
    run = gpusched(
        "scale", write(tmp_path), "--policy", "anticipating,siloed",
        "--report", page, "--export", "keda", plan, "--json",
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert [p["policy"] for p in found["policies"]] == ["anticipating", "siloed"]
    for one in found["policies"]:
        assert one["gpu_hours"] >= found["bound_gpu_hours"] * 0.9
        assert one["regret"] == pytest.approx(one["gpu_hours"] / found["bound_gpu_hours"] - 1)
        assert set(one["slo_attainment"]) == {"fast", "batch"}
        assert sum(one["decisions"].values()) > 500
        assert 0 <= one["scaling_waste"] < 1
    assert any("history" in note for note in found["notes"])
    objects = list(yaml.safe_load_all(plan.read_text()))
    assert [o["kind"] for o in objects] == ["ScaledObject"] * 2
    crons = [t for t in objects[0]["spec"]["triggers"] if t["type"] == "cron"]
    assert sum(int(t["metadata"]["desiredReplicas"]) for t in crons) > 0
    assert page.read_text().count("<svg") == 4


def test_exports_for_others(tmp_path):
    for form, check in (("hpa", "HorizontalPodAutoscaler"), ("schedule", "interval_s")):
        file = tmp_path / f"out.{form}"
        run = gpusched("scale", write(tmp_path), "--policy", "hpa", "--export", form, file)
        assert check in file.read_text()
        assert "GPU-hours" in run.stdout
    counts = json.loads((tmp_path / "out.schedule").read_text())["instances"]
    assert len(counts) == 2
    assert all(1 <= n <= 8 for cell in counts for n in cell["count"])


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "words"),
    [
        ({"tiers": {"fast": {"share": 1.0}}}, (), 2, "tiers.fast"),
        ({"regions": [{"name": "a", "share": 0.5}]}, (), 2, "add up to 0.5"),
        ({"forecast": {"history_days": 3}}, (), 2, "history"),
        ({}, ("--policy", "lt-x"), 2, "lt-i"),
        ({}, ("--export", "helm", "x"), 2, "format"),
        (
            {"regions": [{"name": "a", "most_gpus": 1}],
             "demand": {"profile": "summarize", "rate_rps": 9, "days": 1.2}},
            (), 3, "nearest limits that suffice",
        ),
        ({"tiers": {"fast": {"ttft_s": 0.001, "share": 1.0}}}, (), 3, "one instance alone"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(tmp_path, changes, arguments, code, words):
    run = gpusched("scale", write(tmp_path, **changes), *arguments, code=code)
    assert words in run.stderr
    assert "Traceback" not in run.stderr
