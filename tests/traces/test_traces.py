"""Readers, writers and generators of traces."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.slo import SloClasses
from gpusched.errors import InputError
from gpusched.traces.arrivals import ARRIVALS, arrival_times
from gpusched.traces.describe import against, describe, ideal_hit_ratio
from gpusched.traces.generate import generate
from gpusched.traces.profiles import load_profile, profiles
from gpusched.traces.read import read_trace
from gpusched.traces.trace import Prefixes, Trace
from gpusched.traces.workload import assign_classes
from gpusched.traces.write import write_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,Conversation log
"""
MOONCAKE = "\n".join(
    json.dumps(row)
    for row in (
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [46, 47, 48]},
        {"timestamp": 3000, "input_length": 1600, "output_length": 9, "hash_ids": [46, 47, 50, 51]},
    )
)


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_azure(tmp_path):
    trace = read_trace(write(tmp_path, "a.csv", AZURE))
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.arrival_s == pytest.approx([0, 4.314579, 4.541877], abs=1e-9)
    later = read_trace(write(tmp_path, "b.csv", AZURE_2024))
    assert later.arrival_s == pytest.approx([0, 0.007405], abs=1e-9)


def test_burstgpt_drops_failed_requests_and_says_so(tmp_path):
    trace = read_trace(write(tmp_path, "b.csv", BURSTGPT))
    assert len(trace) == 2
    assert trace.arrival_s.tolist() == [0, 40]
    assert any("1 rows" in note for note in trace.notes)


def test_mooncake_keeps_whole_prefix_blocks(tmp_path):
    trace = read_trace(write(tmp_path, "m.jsonl", MOONCAKE))
    assert trace.arrival_s.tolist() == [0, 3]
    assert trace.prefix.block_tokens == 512
    assert np.diff(trace.prefix.offsets).tolist() == [2, 3]
    assert ideal_hit_ratio(trace) == pytest.approx(1024 / 2700)


def test_gzip_and_unsorted(tmp_path):
    rows = "arrival_s,prompt_tokens,output_tokens\n5,10,1\n2,20,2\n"
    trace = read_trace(write(tmp_path, "t.csv.gz", gzip.compress(rows.encode())))
    assert trace.arrival_s.tolist() == [0, 3]
    assert trace.prompt_tokens.tolist() == [20, 10]
    assert any("sorted" in note for note in trace.notes)


def test_lengths_only_need_a_rate(tmp_path):
    path = write(tmp_path, "l.csv", "input_tokens,output_tokens\n" + "10,5\n" * 2000)
    with pytest.raises(InputError, match="rate_rps"):
        read_trace(path)
    assert read_trace(path, rate_rps=4.0).rate_rps == pytest.approx(4.0, rel=0.1)


def test_gateway_log(tmp_path):
    rows = [
        {
            "arrival_s": 1.0,
            "prompt_tokens": 9,
            "output_tokens": 3,
            "ttft_s": 0.1,
            "class": "fast",
            "status": 200,
        },
        {
            "arrival_s": 2.5,
            "prompt_tokens": 7,
            "output_tokens": 2,
            "ttft_s": 0.1,
            "class": "slow",
            "status": 200,
        },
    ]
    trace = read_trace(write(tmp_path, "log.jsonl", "\n".join(map(json.dumps, rows))))
    assert trace.class_names == ("fast", "slow")
    classes = SloClasses(classes={"slow": {"e2e_s": 9}, "fast": {"ttft_s": 1}})
    assert assign_classes(trace, classes, seed=0).class_id.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty"]),
        ("arrival_s,prompt_tokens,output_tokens\n", ["empty", "at least one"]),
        ("a,b\n1,2\n", ["prompt", "a, b"]),
        ("arrival_s,prompt_tokens,output_tokens\n0,abc,3\n", ["row 1", "prompt_tokens", "abc"]),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,3\n1,-4,3\n", ["row 2", "prompt_tokens", "-4"]),
        ("arrival_s,prompt_tokens,output_tokens\n0,1,3\nnan,4,3\n", ["row 2", "arrival_s"]),
        ("arrival_s,prompt_tokens,output_tokens\n0,1\n", ["malformed", "3 columns"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", ["row 1", "TIMESTAMP", "yesterday"]),
        ('{"timestamp": 0, "input_length"', ["malformed"]),
        ("arrival_s,prompt_tokens,output_tokens\n0,0,0\n", ["no row"]),
        ("arrival_s,prompt_tokens,output_tokens\n0,99999999999,1\n", ["row 1", "prompt_tokens", "1e+11"]),
        (b"PAR1garbage", ["not a readable file"]),
        (b"\x1f\x8bgarbage", ["gzip"]),
    ],
)  # fmt: skip
def test_bad_files_name_row_and_column(tmp_path, text, words):
    path = write(tmp_path, "bad.csv", text)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    for word in ["bad.csv", *words]:
        assert word in str(caught.value)


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)), st.booleans())
def test_any_bytes_are_a_trace_or_a_clear_error(tmp_path_factory, data, headed):
    path = tmp_path_factory.mktemp("fuzz") / "t"
    path.write_bytes((b"arrival_s,prompt_tokens,output_tokens\n" if headed else b"") + data)
    try:
        assert isinstance(read_trace(path, rate_rps=1.0), Trace)
    except InputError as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=4), lambda s: st.lists(s, max_size=3)
)


@given(st.lists(st.fixed_dictionaries({}, optional={
    name: JSON for name in ("timestamp", "input_length", "output_length", "hash_ids", "session", "turn", "think_s", "class")
}), min_size=1, max_size=4))  # fmt: skip
def test_any_json_lines_are_a_trace_or_a_clear_error(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("fuzz") / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    try:
        assert isinstance(read_trace(path, rate_rps=1.0), Trace)
    except InputError as error:
        assert str(error)


@given(st.binary(max_size=40), st.integers(0, 2000))
def test_damaged_parquet_is_a_trace_or_a_clear_error(tmp_path_factory, noise, at):
    path = tmp_path_factory.mktemp("fuzz") / "t.parquet"
    write_trace(generate("chat", 5, 20, seed=1), path)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(noise)] = noise
    path.write_bytes(data)
    try:
        assert isinstance(read_trace(path), Trace)
    except InputError as error:
        assert str(error)


@pytest.mark.parametrize("profile", ["chat", "agent", "documents"])
def test_round_trip(tmp_path, profile):
    trace = generate(profile, 5, 400, seed=3)
    if profile == "documents":
        trace = replace(trace, stored_tokens=trace.prompt_tokens // 2)
    write_trace(trace, tmp_path / "t.parquet")
    again = read_trace(tmp_path / "t.parquet")
    names = ("arrival_s", "prompt_tokens", "output_tokens", "session_id", "round", "think_s")
    for name in (*names, "stored_tokens"):
        ours, theirs = getattr(trace, name), getattr(again, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            shift = trace.arrival_s[0] if name == "arrival_s" else 0
            np.testing.assert_allclose(theirs, ours - shift, atol=1e-12)
    if trace.prefix is not None:
        assert ideal_hit_ratio(again) == pytest.approx(ideal_hit_ratio(trace))
        with pytest.raises(InputError, match="parquet"):
            write_trace(trace, tmp_path / "t.csv")


def test_questions_share_their_documents_by_popularity():
    trace = generate("documents", 5, 2000, seed=1)
    prefix, shape = trace.prefix, load_profile("documents")
    lengths = np.diff(prefix.offsets)
    assert (lengths * prefix.block_tokens < trace.prompt_tokens).all()
    first = prefix.block_ids[prefix.offsets[:-1]]
    _, times = np.unique(first, return_counts=True)
    weight = np.arange(1, shape.documents + 1) ** -shape.popularity
    assert times.max() / len(trace) == pytest.approx((weight / weight.sum())[0], rel=0.15)
    for document in np.unique(first)[:20]:
        rows = np.flatnonzero(first == document)
        assert len({int(n) for n in lengths[rows]}) == 1, "all questions share the whole document"


@pytest.mark.parametrize("process", ARRIVALS)
def test_arrivals_keep_the_mean_rate(process):
    week = 7 * 86400.0
    times = arrival_times(process, 0.5, week, cv=3.0, rng=np.random.default_rng(2))
    assert len(times) / week == pytest.approx(0.5, rel=0.03)
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] <= times[-1] < week


def test_burstiness_is_as_asked():
    def variation(process, cv):
        gaps = np.diff(arrival_times(process, 10, 20000, cv=cv, rng=np.random.default_rng(0)))
        return gaps.std() / gaps.mean()

    assert variation("poisson", 1) == pytest.approx(1.0, abs=0.02)
    assert variation("gamma", 4.0) == pytest.approx(4.0, rel=0.1)
    assert variation("mmpp", 1) > 1.2


@pytest.mark.parametrize("name", sorted(profiles()))
def test_generated_lengths_follow_their_profile(name):
    trace = generate(name, 50, 600, seed=1)
    if load_profile(name).rounds:
        assert trace.prefix is not None
        long_sessions = "agent" in name
        assert describe(trace)["ideal_prefix_hit_ratio"] > (0.8 if long_sessions else 0.3)
        return
    found = against(trace, load_profile(name))
    if load_profile(name).documents:
        del found["prompt_tokens"]  # a popular document's length counts once for each question
    for column in found.values():
        assert column["ks_distance"] < 0.03


def test_generation_is_deterministic():
    one, two = (generate("agent", 5, 300, seed=4) for _ in range(2))
    assert np.array_equal(one.prompt_tokens, two.prompt_tokens)
    assert not np.array_equal(
        one.arrival_s, generate("agent", 5, 300, seed=5).arrival_s[: len(one)]
    )


def test_sessions_reach_the_rate_asked():
    trace = generate("agent", 20, 20000, seed=0)
    assert len(trace) / 20000 == pytest.approx(20, rel=0.05)


def test_a_session_context_only_grows():
    trace = generate("agent", 5, 500, seed=0)
    for session in np.unique(trace.session_id)[:20]:
        rows = np.flatnonzero(trace.session_id == session)
        rows = rows[np.argsort(trace.round[rows])]
        held = trace.prompt_tokens[rows] + trace.output_tokens[rows]
        assert (trace.prompt_tokens[rows][1:] > held[:-1]).all()


def test_taking_rows_keeps_their_blocks():
    prefix = Prefixes(np.array([0, 2, 3, 5]), np.array([0, 1, 0, 0, 2], np.int32), 16)
    trace = Trace(np.arange(3.0), np.full(3, 40, np.int32), np.ones(3, np.int32), prefix=prefix)
    taken = trace.take(np.array([2, 1]))
    assert taken.prefix.offsets.tolist() == [0, 2, 3]
    assert taken.prefix.block_ids.tolist() == [0, 1, 0]


def test_published_traces_have_their_published_statistics(shared):
    folder = shared / "traces"
    conv = describe(read_trace(folder / "azure_2023_conv.parquet"))
    assert conv["rate_rps"] == pytest.approx(5.89, abs=0.01)
    assert conv["gap_cv"] == pytest.approx(1.07, abs=0.01)
    assert conv["peak_minute_requests"] == 507
    mooncake = describe(read_trace(folder / "mooncake_conversation.parquet"))
    assert mooncake["rate_rps"] == pytest.approx(3.28, abs=0.01)
    assert mooncake["ideal_prefix_hit_ratio"] == pytest.approx(0.351, abs=0.01)
    raw = read_trace(folder / "raw/AzureLLMInferenceTrace_conv.head.csv")
    same = read_trace(folder / "azure_2023_conv.parquet", limit=len(raw))
    np.testing.assert_allclose(raw.arrival_s, same.arrival_s, atol=1e-6)
    assert np.array_equal(raw.prompt_tokens, same.prompt_tokens)


def test_lists_in_place_of_lengths(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"input_length": [null, null], "output_length": 1}\n')
    with pytest.raises(InputError, match=r"column 'input_length': expected numbers, got list"):
        read_trace(path)


def test_blocks_of_several_lengths(tmp_path):
    path = tmp_path / "t.jsonl"
    row = (
        '{"arrival_s":%d,"prompt_tokens":200,"output_tokens":1,"block_ids":[1],"block_tokens":%d}\n'
    )
    path.write_text(row % (0, 64) + row % (1, 32))
    with pytest.raises(InputError, match="column 'block_tokens' must hold one positive"):
        read_trace(path)
    path.write_text(row % (0, 64) + row % (1, 64))
    assert read_trace(path).prefix.block_tokens == 64
