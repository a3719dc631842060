"""Engines' metrics in their own words: recorded ones, written ones, garbage."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.engines.dialects import DIALECTS, detect, read_metrics
from gpusched.engines.orca import read_report
from gpusched.engines.state import EngineState

SAMPLES = Path(__file__).parent / "metrics"


@pytest.mark.parametrize(
    ("file", "dialect", "running", "waiting", "kv_usage", "kv_tokens", "hit_rate"),
    [
        # Recorded with six requests running.
        ("vllm-0.32.txt", "vllm", 6, 0, 0.0014649331624244644, 524_288, 0.8),
        ("llama.cpp.txt", "llama.cpp", 6, 0, None, None, None),
        # Written after the projects' documentation.
        ("vllm-0.6.txt", "vllm", 7, 3, 0.41, 16_000, 0.25),
        ("vllm-ranks.txt", "vllm", 7, 1, pytest.approx(0.3), 6_400, None),
        ("sglang.txt", "sglang", 161, 17, 0.28, 442_360, 0.0075),
        ("tgi.txt", "tgi", 4, 7, None, None, None),
        ("trtllm.txt", "trtllm", 12, 4, 0.55, 160_000, 0.3),
        ("triton-trtllm.txt", "trtllm", 9, 2, 0.4875, 64 * 6239, None),
    ],
)
def test_each_make_is_understood(file, dialect, running, waiting, kv_usage, kv_tokens, hit_rate):
    text = (SAMPLES / file).read_text()
    assert detect(text) == dialect
    state = read_metrics(text, dialect)
    assert (state.running, state.waiting) == (running, waiting)
    assert state.requests == running + waiting
    assert state.kv_usage == kv_usage
    assert state.kv_tokens == kv_tokens
    assert state.hit_rate == hit_rate


def test_what_is_no_number_is_passed_over():
    text = (
        'vllm:num_requests_running{model_name="a\\"} 9"} NaN\n'
        'vllm:num_requests_waiting{model_name="a } b"} 4\n'
        "vllm:kv_cache_usage_perc -1\n"
        "vllm:num_requests_running nonsense\n"
    )
    state = read_metrics(text, "vllm")
    assert state == EngineState(waiting=4)
    assert detect("<html>not found</html>") is None
    assert read_metrics("", "sglang").requests is None


fragments = st.sampled_from(
    ["vllm:num_requests_running", "sglang:token_usage", "llamacpp:requests_processing", "{", "}",
     '"', "\\", " ", "\n", "=", "1", "-1", "inf", "1e400", 'block_size="', "vllm:cache_config_info"]
)  # fmt: skip


@given(
    st.lists(fragments | st.text(max_size=5), max_size=40).map("".join),
    st.sampled_from(list(DIALECTS)),
)
def test_garbage_never_raises_and_gives_counts_only(text, dialect):
    detect(text)
    state = read_metrics(text, dialect)
    assert state.running is None or state.running >= 0
    assert state.kv_usage is None or 0 <= state.kv_usage <= 1


@pytest.mark.parametrize(
    ("header", "waiting", "kv_usage"),
    [
        # As vLLM 0.32 sends it.
        (
            b"TEXT named_metrics.num_requests_waiting=2.0, named_metrics.kv_cache_usage_perc=0.25",
            2,
            0.25,
        ),
        (
            b'JSON {"named_metrics": {"num_requests_waiting": 2, "kv_cache_usage_perc": 0.25}}',
            2,
            0.25,
        ),
        (b"named_metrics.num_requests_waiting=2", 2, None),
    ],
)
def test_load_reports_are_read(header, waiting, kv_usage):
    report = read_report(header)
    assert (report.waiting, report.kv_usage) == (waiting, kv_usage)


@pytest.mark.parametrize(
    "header", [b"", b"TEXT", b"JSON {", b"JSON [1]", b"BIN \xff\x00", b"TEXT a=b"]
)
def test_a_report_that_says_nothing_is_none(header):
    assert read_report(header) is None


@given(st.binary(max_size=80))
def test_any_header_is_a_report_or_none(header):
    read_report(header)
    read_report(b"TEXT " + header)
    read_report(b"JSON " + header)
