"""``gpusched compare`` as its users run it."""

import json
import math

import pytest
import yaml
from test_cli import SPEC, gpusched

QUICK = ("--replications", 2)


@pytest.fixture
def plan(tmp_path):
    spec, plan = tmp_path / "spec.yaml", tmp_path / "plan.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    gpusched("plan", spec, "-o", plan)
    return plan


def numbers(value):
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def test_a_spec_is_planned_and_its_policies_compared(tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC))
    done = gpusched(
        "compare", spec, "--batching", "vllm,mc-sf,nested-wait", "--routing", "least-tokens", *QUICK
    )
    assert "planned: 1 replica of 1 × h100_sxm" in done.stderr
    for words in ("attainment", "baseline", "mc-sf", "nested-wait", "no policy is told apart"):
        assert words in done.stdout
    assert done.stdout.count("99.") + done.stdout.count("100.00%") >= 3


def test_the_document_has_its_keys_and_no_infinity(plan, tmp_path):
    page = tmp_path / "page.html"
    done = gpusched(
        "compare", plan, "--batching", "vllm,sjf", "--prediction-errors", "0,0.5", "--rate-scale",
        "1,4", "--report", page, "--json", *QUICK,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(found) == {
        "plan", "replications", "seed", "rows", "verdict", "best", "parting", "capacities", "warnings"
    }  # fmt: skip
    policies = ["vllm", "sjf", "sjf+predictor=oracle", "sjf+predictor=noisy:0.5"]
    assert [row["batching"] for row in found["rows"]] == policies * 2
    row = found["rows"][1]
    assert set(row) == {
        "batching", "routing", "admission", "rate_scale", "rate_rps", "verdict", "figures"
    }  # fmt: skip
    assert set(row["figures"]["slo_attainment"]) == {
        "mean", "half_width", "difference", "difference_half_width", "p"
    }  # fmt: skip
    assert [best["rate_scale"] for best in found["best"]] == [1, 4]
    assert [c["batching"] for c in found["capacities"]] == policies
    assert set(found["capacities"][0]) == {
        "batching", "routing", "admission", "rate_scale", "rate_rps", "half_width", "outside", "difference"
    }  # fmt: skip
    assert all((c["rate_scale"] is None) == bool(c["outside"]) for c in found["capacities"])
    assert all(math.isfinite(x) for x in numbers(found))
    assert "<polyline" in page.read_text()


def test_one_replication_leaves_no_infinity(plan):
    found = json.loads(gpusched("compare", plan, "--replications", 1, "--json").stdout)
    assert found["rows"][0]["figures"]["slo_attainment"]["half_width"] is None
    assert found["parting"] is None


def test_jobs_do_not_change_the_document(plan):
    one, two = (
        gpusched("compare", plan, "--batching", "vllm,mlfq", "--jobs", jobs, "--json", *QUICK).stdout
        for jobs in (1, 2)
    )  # fmt: skip
    assert one == two


def test_without_probing_no_other_load_is_tried(plan):
    options = ("--batching", "vllm,sjf", "--json", *QUICK)
    assert json.loads(gpusched("compare", plan, *options, "--no-probe").stdout)["parting"] is None


def test_own_policies_are_compared(plan, tmp_path):
    (tmp_path / "my.py").write_text("def shortest(request):\n    return request.prompt_tokens\n")
    done = gpusched("compare", plan, "--batching", "vllm,my.py:shortest", *QUICK, cwd=tmp_path)
    assert "shortest" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batching", "vllm,mc-fs"], "mc-sf"),
        (["--batching", "vllm,mc-sf+margin=2"], "margin"),
        (["--batching", "vllm,vllm"], "twice"),
        (["--routing", "lest-tokens"], "least-tokens"),
        (["--admission", "shed"], "admission"),
        (["--prediction-errors", "0,1.5"], "0.99"),
        (["--prediction-errors", "some"], "--prediction-errors"),
        (["--rate-scale", "2:1:0.5"], "--rate-scale"),
        (["--rate-scale", "0"], "positive"),
        (["--ray", "auto", "--jobs", "2"], "not both"),
    ],
)
def test_bad_options(plan, arguments, words):
    done = gpusched("compare", plan, *arguments, code=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unreachable_ray_is_one_clear_message(plan):
    done = gpusched("compare", plan, "--ray", "127.0.0.1:1", *QUICK, code=2)
    assert "--ray" in done.stderr
    assert "Traceback" not in done.stderr
