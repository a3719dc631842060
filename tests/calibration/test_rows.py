import numpy as np
import pytest
from engines_made_up import made_up
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_engine import VirtualEngine

from gpusched.calibration.events import Events
from gpusched.calibration.rows import rows_of, timeline, trimmed_mean
from gpusched.calibration.stage import Answer, Record, Stage


@settings(max_examples=25)
@given(
    st.integers(1, 15), st.integers(4, 300), st.integers(30, 60),
    st.lists(st.integers(1, 1500), max_size=3), st.integers(0, 99),
)  # fmt: skip
def test_rows_are_the_iterations_of_the_engine(
    batch: int, prompt: int, output: int, probes: list[int], seed: int
) -> None:
    truth = made_up()
    engine = VirtualEngine(truth, seed=seed)
    record = engine.run(Stage(batch, prompt, output, tuple(probes)))
    for row in rows_of(record, 0, 1024):
        if row.prompts:
            assert row.prompt_tokens in probes
            base = truth.batch_s(np.array(row.tokens, np.float64)).mean()
            base += truth.iteration.sequence_s * row.sequences
            base += truth.iteration.pair_s * row.pairs
        else:
            base = float(truth.decodes_s(np.float64(batch)))
        expected = base + truth.iteration.context_s * row.context_tokens
        assert row.time_s == pytest.approx(expected, rel=1e-6)


def test_streams_a_token_apart_are_aligned() -> None:
    ends = np.cumsum([10, 10, 10, 80, 10, 11, 9, 10, 70, 10, 10, 10, 10, 10.0])
    early = Answer(8, 13, 0.0, ends[:13], np.arange(1, 14))
    late = Answer(8, 12, 0.0, ends[1:13] + 3.0, np.arange(1, 13))
    line = timeline((early, late))
    assert line is not None
    np.testing.assert_allclose(np.diff(line.end_s), np.diff(ends[3:12]), atol=1e-9)


def test_tokens_that_came_together_have_no_time_of_their_own() -> None:
    answer = Answer(8, 5, 0.0, np.array([1.0, 2.0, 4.0]), np.array([1, 2, 5]))
    np.testing.assert_array_equal(answer.token_times_s(), [1.0, 2.0, np.nan, np.nan, np.nan])
    assert answer.tpot_s == pytest.approx(0.75)


def test_probe_whose_answer_is_late_belongs_to_the_long_gap() -> None:
    ends = np.cumsum([10.0] * 8 + [200.0] + [10.0] * 10)
    batch = (Answer(8, len(ends), 0.0, ends, np.arange(1, len(ends) + 1)),)
    probe = Answer(400, 1, float(ends[7]) + 1.0, np.array([ends[8] + 8.0]), np.array([1]))
    stage = Stage(1, 8, len(ends), (400,))
    (mixed,) = [row for row in rows_of(Record(stage, batch, (probe,)), 0, 2048) if row.prompts]
    assert mixed.time_s == pytest.approx(200.0)


def test_probe_that_waited_for_the_batch_to_end_is_no_row() -> None:
    engine = VirtualEngine(made_up(max_num_seqs=4))
    record = engine.run(Stage(4, 16, 40, (16,)))
    rows = rows_of(record, 0, 1024)
    assert rows
    assert not any(row.prompts for row in rows)


def test_batch_that_never_decodes_together_gives_nothing() -> None:
    engine = VirtualEngine(made_up(max_num_seqs=2))
    assert rows_of(engine.run(Stage(4, 16, 24, ())), 0, 1024) == []


def test_trimmed_mean() -> None:
    assert trimmed_mean(np.array([1.0] * 7 + [100.0])) == 1.0
    assert trimmed_mean(np.array([1.0, 2.0, 3.0])) == 2.0


def test_events_count_choices_where_there_is_no_usage() -> None:
    events = Events()
    one = b'data: {"id":"x","choices":[{"index":0,"text":" a"}]}\n\n'
    assert events.take(one + one[:20]) == 1
    assert events.take(one[20:]) == 2
    tail = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
    assert events.take(tail + b"data: [DONE]\n\n") == 2
    assert events.prompt_tokens == 7
    assert events.done


def test_events_count_running_usage() -> None:
    events = Events()
    event = (
        b'data: {"choices":[{"text":"a b"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    )
    assert events.take(event) == 3


def test_events_carry_errors() -> None:
    events = Events()
    events.take(b'data: {"error":{"message":"out of memory"}}\n\n')
    assert events.error == "out of memory"
