"""``gpusched scale`` with ``objective: carbon`` as its users run it."""

import json
import subprocess
import sys

import pytest
import yaml

SPEC = {
    "model": "llama-3.1-8b",
    "cluster": {"nodes": [{"gpu": "h100_sxm", "gpus": 1, "region": "france"}]},
    "workload": {"profile": "documents", "rate_rps": 0.1, "duration_s": 7200},
    "slo": {"ttft_s": 5, "attainment": 0.9},
    "objective": "carbon",
    "cache": {"sizes_tb": [0, 1, 4]},
}


def scale(tmp_path, spec, *arguments, code=0):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    done = subprocess.run(
        [sys.executable, "-m", "gpusched.cli.main", "scale", path, *arguments],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_answer_as_json_and_as_page(tmp_path):
    page = tmp_path / "cache.html"
    found = json.loads(scale(tmp_path, SPEC, "--json", "--report", page).stdout)
    assert found["objective"] == "carbon"
    assert len(found["hours"]) == 24
    assert {row["size_tb"] for row in found["hours"]} <= {0.0, 1.0, 4.0}
    assert [row["ssd_kg_per_tb"] for row in found["sensitivity"]] == [6.0, 30.0, 160.0]
    assert any("serve somebody else" in text for text in found["assumptions"])
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "kg/TB" in text


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"cache": {"sizes_tb": [4, 1]}}, 2, "must ascend"),
        ({"cache": {"carbon": "ZZ"}}, 2, "unknown zone"),
        ({"cache": {"eviction": "lruu"}}, 2, "did you mean lru"),
        ({"cache": None}, 2, "cache: is missing"),
        ({"slo": {"ttft_s": 0.001, "attainment": 0.9}}, 3, "lower the attainment to 0."),
        ({"model": "llama-3.1-405b"}, 3, "leave no room for KV cache"),
    ],
)
def test_bad_input_and_infeasible_questions(tmp_path, change, code, words):
    assert words in scale(tmp_path, {**SPEC, **change}, code=code).stderr
