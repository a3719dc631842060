"""Batching disciplines as real engines behave, on fleets small enough to follow by hand.

Iterations take a second and KV blocks hold a token, unless told: a prompt that starts at 0 gives
its first token at 1, and a request holds its prompt and the tokens it has given but the last.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.lengths.predictors import parse_predictor, predict
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Trace


def timing(token_s=0.0, fixed_s=1.0, tokens=4096):
    """Iterations of a fixed time and a time a token."""
    tokens_s = fixed_s + token_s * np.arange(tokens + 1.0)
    zeros = np.zeros(257)
    return CompiledTiming(tokens_s, tokens_s[:257], zeros, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


SECOND = timing()


def requests(*rows, classes=None):
    """A trace of (arrival, prompt, output)."""
    arrival, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    return Trace(
        arrival.astype(np.float64),
        prompt.astype(np.int32),
        output.astype(np.int32),
        class_id=None if classes is None else np.array(classes, np.int16),
        class_names=() if classes is None else ("urgent", "patient"),
    )


def serve(batching, trace, *, seed=0, **pool):
    """Serve a trace on one engine."""
    options = {"timing": SECOND, "kv_blocks": 10_000, "block_tokens": 1, "max_num_seqs": 16}
    return simulate(
        Fleet((Pool("engine", batching=batching, **{**options, **pool}),)), trace, seed=seed
    )


def backlog(n=60, seed=0, longest=60):
    """Requests of very unequal length that all wait at the start."""
    rng = np.random.default_rng(seed)
    output = np.minimum(rng.geometric(0.08, n), longest)
    return requests(*zip(np.zeros(n), rng.integers(1, 20, n), output, strict=True))


# vLLM


def test_prompts_are_cut_to_the_budget_in_order_of_arrival():
    trace = requests((0, 6, 3), (0, 3, 2))
    result = serve("vllm", trace, max_num_batched_tokens=4, max_num_seqs=4)
    # 0-1: 4 of the first prompt; 1-2: 2 + 2; 2-3: a decode and the last of the second prompt.
    assert result.admitted_s == pytest.approx([0, 1])
    assert result.first_token_s == pytest.approx([2, 3])
    assert result.finish_s == pytest.approx([4, 4])


def test_decodes_take_their_tokens_of_the_budget_first():
    trace = requests((0, 2, 9), (0.5, 12, 1))
    result = serve("vllm", trace, max_num_batched_tokens=4, max_num_seqs=4)
    # From 1 on a decode leaves 3 tokens an iteration to the second prompt: 12 / 3 = 4 iterations.
    assert result.first_token_s == pytest.approx([1, 5])
    assert result.finish_s[0] == pytest.approx(9)


def test_the_youngest_is_preempted_and_recomputed():
    trace = requests((0, 3, 6), (0, 3, 6))
    result = serve("vllm", trace, kv_blocks=10)
    # At 3 both hold 5 tokens and need one more: the second goes, and comes back when the first has
    # ended with its fourth token after recomputing 6 tokens in one iteration.
    assert result.preemptions.tolist() == [0, 1]
    assert result.finish_s == pytest.approx([6, 9])
    assert result.pools[0].prompt_tokens == 3 + 3 + 6
    assert result.pools[0].kv_peak == 1.0


def test_first_come_first_served_has_no_overtaking():
    result = serve("vllm", backlog(), max_num_seqs=4, kv_blocks=200)
    assert (np.diff(result.admitted_s) >= 0).all()


# Priorities


def test_the_urgent_go_first_and_are_not_preempted():
    trace = requests((0, 3, 6), (0, 3, 6), classes=[1, 0])
    result = serve("priority", trace, kv_blocks=10)
    assert result.preemptions.tolist() == [1, 0]
    assert result.finish_s == pytest.approx([9, 6])


def test_the_urgent_do_not_interrupt_while_there_is_room():
    trace = requests((0, 1, 5), (1, 1, 1), (2, 1, 1), classes=[1, 1, 0])
    result = serve("priority", trace, max_num_seqs=1)
    assert result.preemptions.sum() == 0
    assert result.admitted_s == pytest.approx([0, 6, 5])


# Whole prompts, small chunks, batches to their end


def longest_gap_s(result):
    return result.gaps.max_s


def test_prefill_first_lets_decodes_wait():
    trace = requests((0, 2, 5), (1.5, 6, 1))
    stalled, mixed = serve("prefill-first", trace), serve("vllm", trace)
    assert stalled.finish_s == pytest.approx([6, 3])
    assert mixed.finish_s == pytest.approx([5, 3])
    assert longest_gap_s(stalled) == pytest.approx(2)
    assert longest_gap_s(mixed) == pytest.approx(1)


def test_small_chunks_bound_the_gap_between_tokens():
    fast = timing(token_s=1e-3, fixed_s=0.01)
    trace = requests(*[(0, 4, 200)] * 8, (0.5, 3000, 2))
    pool = {"timing": fast, "max_num_batched_tokens": 4096}
    chunked = serve("sarathi+chunk_tokens=64", trace, **pool)
    whole = serve("vllm", trace, **pool)
    assert longest_gap_s(chunked) <= 0.01 + 64e-3 + 1e-9
    assert longest_gap_s(whole) > 3.0
    assert chunked.ttft_s[-1] > whole.ttft_s[-1]


def test_a_prompt_in_chunks_has_all_its_blocks_reserved():
    trace = requests((0, 2, 10), (0.5, 12, 1))
    pool = {"kv_blocks": 14, "max_num_batched_tokens": 5, "max_num_seqs": 2}
    # vLLM starts the prompt as soon as its first chunk fits and gives it up when the last does not,
    # again and again; Sarathi waits until the first answer has ended.
    eager = serve("vllm", trace, **pool)
    assert eager.admitted_s[1] == pytest.approx(1)
    assert eager.preemptions[0] == 0 < eager.preemptions[1]
    patient = serve("sarathi+chunk_tokens=5+margin=0", trace, **pool)
    assert patient.admitted_s[1] == pytest.approx(10)
    assert patient.preemptions.sum() == 0


def test_a_static_batch_runs_to_its_end():
    trace = requests((0, 1, 2), (0, 1, 5), (0.5, 1, 1))
    result = serve("static", trace, max_num_seqs=2)
    assert result.finish_s == pytest.approx([2, 5, 6])
    assert serve("vllm", trace, max_num_seqs=2).finish_s == pytest.approx([2, 5, 3])


def test_a_static_batch_reserves_its_answers():
    trace = requests((0, 3, 6), (0, 3, 6))
    result = serve("static", trace, kv_blocks=10)
    assert result.preemptions.sum() == 0
    assert result.finish_s == pytest.approx([6, 12])


# Shortest first


def test_shortest_first_by_hand():
    trace = requests((0, 1, 5), (0, 1, 1), (0, 1, 3))
    assert serve("sjf+predictor=oracle", trace, max_num_seqs=1).finish_s == pytest.approx([9, 1, 4])
    assert serve("vllm", trace, max_num_seqs=1).finish_s == pytest.approx([5, 6, 9])


@pytest.mark.parametrize("seed", range(3))
def test_shortest_first_shortens_the_mean_of_a_backlog(seed):
    trace = backlog(seed=seed)
    fcfs, oracle, noisy = (
        serve(name, trace, max_num_seqs=4).e2e_s.mean()
        for name in ("vllm", "sjf+predictor=oracle", "sjf+predictor=noisy:0.5")
    )
    assert oracle < 0.75 * fcfs
    assert oracle <= noisy < fcfs


def test_ageing_bounds_the_longest_wait():
    # The engine is never idle: short answers of two tokens come every 1.9 s and take 2 s.
    shorts = [(1.9 * i, 1, 2) for i in range(200)]
    trace = requests(*sorted([*shorts, (1.0, 1, 20)]))
    long = int(np.argmax(trace.output_tokens))
    starved = serve("sjf+predictor=oracle", trace, max_num_seqs=1)
    aged = serve("sjf+predictor=oracle+ageing_tokens_per_s=2", trace, max_num_seqs=1)
    assert starved.queue_s[long] > 350
    # Only answers that arrive within (20 - 2) / 2 = 9 s after it go first, some of them late.
    assert aged.queue_s[long] < 9 + 2 * 2
    assert aged.queue_s[long] > 7


def test_feedback_favours_short_answers_without_predictions():
    trace = requests((0, 1, 10), (0.5, 1, 1))
    result = serve("mlfq+quantum_tokens=2", trace, max_num_seqs=1)
    # The long answer leaves the first level with its second token and goes on after the short one.
    assert result.finish_s == pytest.approx([11, 3])
    assert result.preemptions.tolist() == [1, 0]
    trace = backlog(seed=4)
    short = trace.output_tokens <= 4
    first, fair = (
        serve(name, trace, max_num_seqs=4).e2e_s[short].mean()
        for name in ("mlfq+quantum_tokens=4", "vllm")
    )
    assert first < 0.5 * fair


# Look-ahead


@st.composite
def tight(draw):
    """Arrivals on an engine with little memory: prompts are never cut, every request fits alone."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 25)),
            min_size=1, max_size=25,
        )
    )  # fmt: skip
    return requests(*sorted(rows)), draw(st.integers(40, 90)), draw(st.sampled_from([1, 4, 16]))


@pytest.mark.parametrize(
    "name", ["mc-sf", "mc-sf+skip=3", "mc-volume", "mc-fcfs", "a-max", "a-min"]
)
@given(tight())
@settings(max_examples=30)
def test_look_ahead_never_preempts_with_true_lengths(name, case):
    trace, kv_tokens, block_tokens = case
    blocks = -(-kv_tokens // block_tokens)
    margin = "+margin=0" if name.startswith("mc") else ""
    result = serve(
        f"{name}+predictor=oracle{margin}", trace, kv_blocks=blocks, block_tokens=block_tokens
    )
    assert result.preemptions.sum() == 0
    assert not result.rejected.any()
    assert np.isfinite(result.finish_s).all()


def test_look_ahead_by_hand():
    # The second prompt fits at once, but together they would hold 3 + 3 + 2 * 3 = 12 tokens at the
    # fourth iteration. Put off by two, it starts when it grows to 7 while the first is at its 8.
    trace = requests((0, 3, 6), (0, 3, 2))
    fcfs = serve("mc-fcfs+predictor=oracle+margin=0", trace, kv_blocks=10)
    assert fcfs.admitted_s == pytest.approx([0, 0])
    longer = requests((0, 3, 6), (0, 3, 6))
    held = serve("mc-fcfs+predictor=oracle+margin=0", longer, kv_blocks=10)
    # Iteration 5 holds 8 + (3 + 5 - k) tokens if it starts in iteration k: at most 10 from 6 on.
    assert held.admitted_s == pytest.approx([0, 6])
    wide = serve("mc-fcfs+predictor=oracle+margin=0", longer, kv_blocks=12)
    # In the first request's last iteration, from 5 to 6, it holds 8 tokens: 4 are left.
    assert wide.admitted_s == pytest.approx([0, 4])
    assert wide.preemptions.sum() == 0


def test_a_margin_is_kept_free():
    trace = requests((0, 3, 6), (0, 3, 6))
    assert serve("mc-fcfs+predictor=oracle+margin=0", trace, kv_blocks=16).admitted_s[1] == 0
    held = serve("mc-fcfs+predictor=oracle+margin=0.2", trace, kv_blocks=16)
    assert held.pools[0].kv_peak <= 0.8
    assert held.admitted_s[1] > 0
    for name in ("greedy+margin=0.5", "prefill-first+margin=0.5", "sarathi+margin=0.5"):
        # 7 blocks are free beside the first prompt, and 5 of them must stay so.
        assert serve(name, trace, kv_blocks=10).admitted_s[1] > 0
        assert serve(name.replace("0.5", "0.4"), trace, kv_blocks=10).admitted_s[1] == 0


def test_one_that_does_not_fit_may_be_passed_over():
    trace = requests((0, 6, 4), (0, 5, 5), (0, 1, 9))
    strict = serve("mc-fcfs+predictor=oracle+margin=0", trace, kv_blocks=16)
    loose = serve("mc-fcfs+predictor=oracle+margin=0+skip=1", trace, kv_blocks=16)
    assert strict.admitted_s[1] > 0
    assert strict.admitted_s[2] >= strict.admitted_s[1]
    assert loose.admitted_s[2] == 0 < loose.admitted_s[1]


def test_upper_and_lower_ends_of_a_prediction():
    trace = backlog(seed=2)
    pool = {"kv_blocks": 150, "max_num_seqs": 16}
    safe = serve("a-max+predictor=oracle", trace, **pool)
    plain = serve("mc-sf+predictor=oracle+margin=0", trace, **pool)
    np.testing.assert_array_equal(safe.finish_s, plain.finish_s)
    daring = serve("a-min+predictor=constant:1", trace, **pool)
    careful = serve("a-max+predictor=constant:60", trace, **pool)
    assert daring.preemptions.sum() > 0 == careful.preemptions.sum()
    assert careful.admitted_s.max() > daring.admitted_s.max()


def test_the_smallest_estimate_is_evicted():
    trace = requests((0, 3, 6), (0, 3, 6))
    # Predictions too short for the look-ahead to see that both cannot end; when blocks run out both
    # have given three tokens, which raises the first one's estimate to 4, below the second's 5.
    seed = next(
        s
        for s in range(10_000)
        if predict(trace, parse_predictor("noisy:0.9"), s).tolist() in ([1, 5], [2, 5], [3, 5])
    )
    result = serve("a-min+predictor=noisy:0.9", trace, seed=seed, kv_blocks=10)
    assert result.preemptions.tolist() == [1, 0]
    assert serve("vllm", trace, kv_blocks=10).preemptions.tolist() == [0, 1]


# Clearing


def test_clearing_evicts_everyone():
    trace = requests((0, 3, 6), (0, 3, 6))
    result = serve("greedy+margin=0.25", trace, kv_blocks=10)
    # At 3 both go; the first comes back alone, since a quarter must stay free beside it.
    assert result.preemptions.tolist() == [1, 1]
    assert result.finish_s == pytest.approx([6, 9])


def test_clearing_with_a_probability_spares_some():
    trace = backlog(n=200, seed=5)
    pool = {"kv_blocks": 300, "max_num_seqs": 64}
    everyone = serve("greedy+margin=0.05", trace, **pool)
    some = serve("greedy-clearing+margin=0.05+clear_probability=0.2", trace, **pool)
    assert 0 < some.preemptions.sum() < everyone.preemptions.sum()
    assert np.isfinite(some.finish_s).all()
    again = serve("greedy-clearing+margin=0.05+clear_probability=0.2", trace, **pool)
    np.testing.assert_array_equal(some.finish_s, again.finish_s)


def test_a_restart_loses_the_progress():
    trace = requests((0, 3, 6), (0, 3, 6))
    kept = serve("mc-fcfs+predictor=constant:1", trace, kv_blocks=10)
    lost = serve("mc-fcfs+predictor=constant:1+restart=true", trace, kv_blocks=10)
    assert kept.preemptions.tolist() == lost.preemptions.tolist() == [0, 1]
    assert kept.finish_s == pytest.approx([6, 9])
    assert lost.finish_s == pytest.approx([6, 12])


def test_thrashing_is_told_not_run_for_ever():
    trace = requests((0, 3, 6), (0, 3, 6))
    with pytest.raises(
        InputError, match=r"greedy\+margin=0.25\+restart=true evicts request [01] again"
    ):
        serve("greedy+margin=0.25+restart=true", trace, kv_blocks=10)


# What no discipline may do


@pytest.mark.parametrize("name", ["vllm", "mlfq", "greedy", "prefill-first", "sarathi"])
def test_hidden_lengths_decide_nothing(name):
    trace = backlog(n=40, seed=6, longest=20)
    hidden = trace.output_tokens == 20
    longer = requests(
        *zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens + 30 * hidden, strict=True)
    )
    one, two = (serve(name, t, kv_blocks=500, max_num_seqs=8) for t in (trace, longer))
    revealed_s = one.finish_s[hidden].min()
    for times in ("admitted_s", "first_token_s", "finish_s"):
        ours, theirs = getattr(one, times), getattr(two, times)
        before = np.minimum(ours, theirs) < revealed_s
        assert before.sum() > 5
        np.testing.assert_array_equal(ours[before], theirs[before])
