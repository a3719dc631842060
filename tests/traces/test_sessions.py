"""Sessions: told from growing contexts, read from files, generated from profiles."""

import numpy as np
import pytest

from gpusched.errors import InputError
from gpusched.traces.generate import generate
from gpusched.traces.profiles import LEVELS, load_profile
from gpusched.traces.read import read_trace
from gpusched.traces.sessions import sessions_from_prefixes
from gpusched.traces.trace import Prefixes, Trace


def rows(*blocks, tokens=4, arrivals=None):
    ids = [b for row in blocks for b in row]
    _, dense = np.unique(ids, return_inverse=True)
    offsets = np.concatenate(([0], np.cumsum([len(b) for b in blocks])))
    return Trace(
        arrival_s=np.arange(len(blocks), dtype=np.float64) if arrivals is None else arrivals,
        prompt_tokens=np.array([len(b) * tokens for b in blocks], np.int32),
        output_tokens=np.full(len(blocks), 10, np.int32),
        prefix=Prefixes(offsets.astype(np.int64), dense.astype(np.int32), tokens),
    )


def test_contexts_that_grow_make_a_session():
    trace = rows([1, 2], [5, 6], [1, 2, 3], [5, 6, 7, 8], [1, 2, 3, 4], [9])
    found = sessions_from_prefixes(trace)
    assert found.session_id.tolist() == [0, 1, 0, 1, 0, 2]
    assert found.round.tolist() == [0, 0, 1, 1, 2, 0]
    assert found.think_s[2] == pytest.approx(2.0 - 0.3)


def test_a_branch_begins_a_session_of_its_own():
    found = sessions_from_prefixes(rows([1, 2], [1, 2, 3], [1, 2, 4]))
    assert found.session_id.tolist() == [0, 0, 1]


def test_a_common_system_prompt_makes_no_session():
    found = sessions_from_prefixes(rows(*[[0, 10 + i] for i in range(20)], [0]))
    assert len(set(found.session_id.tolist())) == 21


def test_blocks_are_needed():
    with pytest.raises(InputError, match="block ids"):
        sessions_from_prefixes(generate("chat", 5.0, 10.0))


def test_mooncake_conversations(shared):
    found = sessions_from_prefixes(read_trace(shared / "traces/mooncake_conversation.parquet"))
    continued = np.flatnonzero(found.round > 0)
    assert 0.2 < len(continued) / len(found) < 0.5
    order = np.lexsort((found.round, found.session_id))
    same = np.diff(found.session_id[order]) == 0
    assert (np.diff(found.prompt_tokens[order])[same] >= 0).mean() > 0.99


@pytest.mark.parametrize("name", ["agentic_coding", "agentic_swebench_calls"])
def test_agent_sessions_start_on_a_clock_that_is_drawn(shared, name):
    path = shared / f"traces/{name}.parquet"
    with pytest.raises(InputError, match="rate_rps"):
        read_trace(path)
    trace = read_trace(path, rate_rps=2.0, seed=3, limit=1500)
    starts = trace.session_starts_s()
    assert np.unique(starts).size == np.unique(trace.session_id).size
    assert (trace.think_s >= 0).all()
    assert (trace.round > 0).mean() > 0.9


@pytest.mark.parametrize("profile", ["tool-agent", "assistant", "rag"])
def test_profiles_with_rounds(profile):
    shape = load_profile(profile)
    assert len(shape.growth_tokens) == len(shape.rounds) == len(LEVELS)
    trace = generate(profile, 20.0, 400.0, seed=2)
    order = np.lexsort((trace.round, trace.session_id))
    same = np.diff(trace.session_id[order]) == 0
    grown = np.diff(trace.prompt_tokens[order].astype(np.int64)) - trace.output_tokens[order][:-1]
    assert (grown[same] >= 1).all()
    assert trace.prompt_tokens.max() <= shape.max_context_tokens
    assert np.median(grown[same]) == pytest.approx(shape.growth_tokens[LEVELS.index(0.5)], rel=0.2)


def test_retrieval_is_called_three_times():
    trace = generate("rag", 20.0, 100.0, seed=5)
    assert np.array_equal(np.bincount(trace.session_id), np.full(trace.session_id.max() + 1, 4))
