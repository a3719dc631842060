"""The spec reader: what it accepts, and that it answers all else with one clear message."""

import copy

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.document import parse_document
from gpusched.domain.plan import plan_from
from gpusched.domain.slo import Slo
from gpusched.domain.spec import Spec, read_spec, spec_from
from gpusched.errors import InputError

GOOD = {
    "model": "llama-3.1-70b",
    "weights_dtype": "fp8",
    "cluster": {
        "nodes": [{"name": "h100", "count": 2, "gpu": "h100_sxm", "gpus": 8, "region": "us-east"}],
        "inter_node_gbps": 400,
    },
    "workload": {"profile": "chat", "rate_rps": 12, "duration_s": 3600},
    "slo": {"ttft_ms": 2000, "tpot_ms": 50, "attainment": 0.99},
    "objective": "cost",
}


def test_reads_the_published_example(tmp_path):
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(GOOD))
    spec = read_spec(tmp_path / "spec.yaml")
    assert spec.slo.only == Slo(ttft_s=2.0, tpot_s=0.05, attainment=0.99)
    assert spec.cluster.total_gpus == 16
    assert spec.cluster.inter_node_bytes_per_s(0) == pytest.approx(400e9 / 8 / 8)
    assert spec.dtype == "fp8"


def test_trace_paths_are_relative_to_the_file(tmp_path):
    spec = spec_from({**GOOD, "workload": {"trace": "conv.csv"}}, folder=tmp_path)
    assert spec.workload.trace == str(tmp_path / "conv.csv")


def test_seconds_and_classes():
    classes = {"fast": {"ttft_s": 1, "share": 0.25}, "slow": {"e2e_s": 60, "share": 0.75}}
    spec = spec_from({**GOOD, "slo": classes})
    assert spec.slo.names == ("fast", "slow")
    assert spec.slo.only is None


def change(*path, to):
    values = copy.deepcopy(GOOD)
    at = values
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (change("model", to="llama-3.1-71b"), ["model", "llama-3.1-70b"]),
        (change("cluster", "nodes", 0, "gpu", to="h100_sxn"), ["cluster.nodes.0.gpu", "h100_sxm"]),
        (change("cluster", "nodes", 0, "count", to=0), ["count", "1", "0"]),
        (change("cluster", "nodes", 0, "count", to=10**9), ["count", "1000000"]),
        (change("cluster", "nodes", 0, "region", to="us-eats"), ["us-east"]),
        (change("cluster", "nodes", to=[]), ["cluster.nodes"]),
        (change("workload", "rate_rps", to=-1), ["workload.rate_rps", "greater than 0", "-1"]),
        (change("workload", "rate_rps", to=float("nan")), ["workload.rate_rps"]),
        (change("workload", "rate_rps", to=9e6), ["requests", "lower rate_rps"]),
        (change("workload", to={}), ["trace", "profile"]),
        (change("workload", to={"trace": "a", "start_s": 5, "end_s": 1}), ["end_s"]),
        (change("slo", to={"attainment": 0.9}), ["slo", "ttft_ms"]),
        (change("slo", to={"tpot_ms": 500, "e2e_ms": 100}), ["tpot", "e2e"]),
        (change("slo", "attainment", to=1.5), ["slo.attainment", "1.5"]),
        (change("slo", to={"ttft_ms": 1, "ttft_s": 1}), ["both given"]),
        (change("objective", to="cots"), ["objective", "did you mean cost"]),
        (change("weigths_dtype", to="fp8"), ["weigths_dtype", "did you mean weights_dtype"]),
        (change("engine", to={"block_size": 24}), ["engine.block_size", "power of two"]),
        (change("engine", to={"max_num_seqs": 512, "max_num_batched_tokens": 64}), ["at least max_num_seqs"]),
        (change("search", to={"gpus": ["b200_sxm"]}), ["search.gpus", "h100_sxm"]),
    ],
)  # fmt: skip
def test_bad_specs_name_field_and_remedy(values, words):
    with pytest.raises(InputError) as caught:
        spec_from(values, origin="spec.yaml")
    message = str(caught.value)
    assert message.startswith("spec.yaml: ")
    for word in words:
        assert word in message
    assert caught.value.exit_code == 2


def test_all_problems_are_told_at_once():
    values = change("objective", to="cots") | {"model": "gpt-5"}
    with pytest.raises(InputError) as caught:
        spec_from(values)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    "text", ["", "- a", "a: [1", "\t", "{", "null", "1: 2", "a: &x [*x]", "!!python/object:os {}"]
)
def test_malformed_documents(text):
    with pytest.raises(InputError):
        spec_from(parse_document(text, "f"))


@given(st.text())
def test_any_text_is_a_spec_or_a_clear_error(text):
    try:
        assert isinstance(spec_from(parse_document(text, "f")), Spec)
    except InputError as error:
        assert str(error)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["h100_sxm", "chat", "cost"]),
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
)
FIELDS = [
    ("model",), ("weights_dtype",), ("cluster",), ("cluster", "nodes"), ("cluster", "nodes", 0), ("cluster", "nodes", 0, "gpu"),
    ("cluster", "nodes", 0, "gpus"), ("workload",), ("workload", "profile"), ("workload", "rate_rps"), ("workload", "trace"),
    ("workload", "duration_s"), ("slo",), ("slo", "ttft_ms"), ("slo", "attainment"), ("slo", "share"), ("engine",), ("search",),
    ("routing",), ("timing",),
]  # fmt: skip


@given(st.sampled_from(FIELDS), NESTED)
def test_damaged_specs_give_a_spec_or_a_clear_error(path, value):
    try:
        assert isinstance(spec_from(change(*path, to=value)), Spec)
    except InputError as error:
        assert str(error)


@given(st.dictionaries(st.text(max_size=10), NESTED, max_size=5))
def test_any_mapping_as_plan_is_a_clear_error(values):
    with pytest.raises(InputError):
        plan_from({**values, "gpusched": "plan/1"})


def test_attainment_counts_rejected_requests_as_missed():
    slo = Slo(ttft_s=1.0, tpot_s=0.1)
    ttft = np.array([0.5, 1.0, 1.1, np.nan, 0.5])
    tpot = np.array([0.05, 0.1, 0.05, np.nan, 0.2])
    assert slo.met(ttft, tpot, ttft).tolist() == [True, True, False, False, False]
