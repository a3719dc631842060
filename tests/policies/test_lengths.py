"""Length predictors against their definitions, and the survival curve against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.lengths.histogram import BINS, LONGEST, bin_of, longest_in, upper_ends
from gpusched.policies.lengths.predictors import (
    DELAY_S,
    ENOUGH,
    PRIOR_TOKENS,
    SURVIVAL_EVERY,
    TOKEN_S,
    LengthHistory,
    error_summary,
    parse_predictor,
    predict,
    whole,
)
from gpusched.policies.lengths.survival import SurvivalCurve, survival_weights
from gpusched.traces.trace import Trace

LEARNING = ["mean", "quantile:0.5", "quantile:0.9", "prompt-quantile:0.8", "survival:0.9"]


def sample(n=1500, seed=0, rate=20.0, longest=500, classes=None):
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, 2000, n).astype(np.int32)
    output = np.minimum(rng.geometric(0.01, n), longest).astype(np.int32)
    ids = None if classes is None else rng.integers(0, classes, n).astype(np.int16)
    names = () if classes is None else tuple(f"class {i}" for i in range(classes))
    return Trace(np.cumsum(rng.exponential(1 / rate, n)), prompt, output, class_id=ids,
                 class_names=names)  # fmt: skip


def ends_of(trace):
    return trace.arrival_s + DELAY_S + TOKEN_S * trace.output_tokens


def least_reaching(lengths, share):
    """The least length that at least ``share`` of the lengths do not exceed."""
    return sorted(lengths)[max(int(np.ceil(share * len(lengths) - 1e-9)), 1) - 1]


def predicted(trace, text, seed=0):
    return predict(trace, parse_predictor(text), seed)


def test_bins_part_the_lengths():
    ends = upper_ends()
    assert ends[-1] == LONGEST
    assert (np.diff(ends) > 0).all()
    for index, end in enumerate(ends[:-1]):
        assert bin_of(int(end)) == index
        assert bin_of(int(end) + 1) == index + 1
        assert longest_in(index) == end
    assert bin_of(10 * LONGEST) == BINS - 1
    assert (ends[:512] == np.arange(1, 513)).all()
    widths = np.diff(ends[512:]) / ends[512:-1]
    assert widths.max() < 0.0075


def test_oracle_and_constant():
    trace = sample(50)
    assert (predicted(trace, "oracle") == trace.output_tokens).all()
    assert (predicted(trace, "constant:77") == 77).all()


def test_noisy_predictions_stay_within_their_error():
    trace = sample(5000)
    true = trace.output_tokens
    noisy = predicted(trace, "noisy:0.4")
    assert (np.abs(noisy - true) <= 0.4 * true + 0.5).all()
    assert noisy.mean() == pytest.approx(true.mean(), rel=0.02)
    over = predicted(trace, "over:3")
    assert (over >= true).all()
    assert (over <= 3 * true).all()
    assert (over / true).mean() == pytest.approx(2.0, rel=0.02)
    spread = np.log(predicted(trace, "lognormal:0.5") / true)[true > 50]
    assert spread.std() == pytest.approx(0.5, rel=0.05)
    assert (predicted(trace, "noisy:0.4", seed=1) != noisy).any()
    assert (predicted(trace, "noisy:0.4") == noisy).all()


@pytest.mark.parametrize("kind", ["mean", "quantile:0.5", "quantile:0.9", "quantile:0.99"])
def test_learning_predictors_equal_their_definition(kind):
    trace = sample(400)
    ends = ends_of(trace)
    found = predicted(trace, kind)
    for r in range(len(trace)):
        done = trace.output_tokens[ends <= trace.arrival_s[r]]
        if not len(done):
            assert found[r] == PRIOR_TOKENS
        elif kind == "mean":
            assert found[r] == max(np.rint(done.mean()), 1)
        else:
            assert found[r] == least_reaching(done, float(kind.split(":")[1]))


@pytest.mark.parametrize("kind", ["quantile:0.7", "prompt-quantile:0.7"])
def test_quantiles_within_a_class_or_among_like_prompts(kind):
    trace = sample(1200, classes=3)
    keys = trace.class_id if kind.startswith("q") else np.floor(np.log2(trace.prompt_tokens))
    ends = ends_of(trace)
    found = predicted(trace, kind)
    own_counts = 0
    for r in range(0, len(trace), 7):
        done = ends <= trace.arrival_s[r]
        own = done & (keys == keys[r])
        own_counts += own.sum() >= ENOUGH
        rows = own if own.sum() >= ENOUGH else done
        if rows.any():
            assert found[r] == least_reaching(trace.output_tokens[rows], 0.7)
    assert own_counts > 50


def test_a_quantile_covers_its_share():
    trace = sample(20_000)
    later = slice(2000, None)
    for share in (0.5, 0.9, 0.99):
        enough = predicted(trace, f"quantile:{share}")[later] >= trace.output_tokens[later]
        assert enough.mean() == pytest.approx(share, abs=0.02)


def test_prompt_lengths_that_tell_the_answer_are_used():
    rng = np.random.default_rng(5)
    n = 6000
    long = rng.random(n) < 0.5
    prompt = np.where(long, 900, 40).astype(np.int32)
    output = (np.where(long, 300, 20) + rng.integers(0, 10, n)).astype(np.int32)
    trace = Trace(np.cumsum(rng.exponential(0.05, n)), prompt, output)
    errors = [
        error_summary(predicted(trace, kind)[1000:], output[1000:])["mean_relative_error"]
        for kind in ("prompt-quantile:0.5", "quantile:0.5")
    ]
    assert errors[0] < 0.1 < errors[1]


@pytest.mark.parametrize("kind", LEARNING)
def test_predictions_do_not_look_ahead(kind):
    trace = sample(900, seed=3)
    hidden = 450
    output = trace.output_tokens.copy()
    output[hidden:] = np.random.default_rng(9).integers(1, 500, len(output) - hidden)
    other = Trace(trace.arrival_s, trace.prompt_tokens, output)
    revealed_s = min(ends_of(trace)[hidden:].min(), ends_of(other)[hidden:].min())
    before = trace.arrival_s < revealed_s
    assert before[hidden:].any()
    ours, theirs = predicted(trace, kind), predicted(other, kind)
    assert (ours[before] == theirs[before]).all()
    assert (ours != theirs).any()


@pytest.mark.parametrize("kind", ["mean", "quantile:0.6", "prompt-quantile:0.6"])
def test_live_history_equals_the_replay(kind):
    trace = sample(600, seed=4)
    ends = ends_of(trace)
    order = np.argsort(ends)
    history = LengthHistory(parse_predictor(kind))
    found = predicted(trace, kind)
    done = 0
    for r in range(len(trace)):
        while ends[order[done]] <= trace.arrival_s[r]:
            row = order[done]
            history.observe(
                int(trace.output_tokens[row]), prompt_tokens=int(trace.prompt_tokens[row])
            )
            done += 1
        assert history.predict(prompt_tokens=int(trace.prompt_tokens[r])) == found[r]


def test_survival_predictions_equal_their_definition():
    trace = sample(3 * SURVIVAL_EVERY, seed=6, rate=60.0)
    ends = ends_of(trace)
    found = predicted(trace, "survival:0.8")
    for first in range(0, len(trace), SURVIVAL_EVERY):
        now_s = trace.arrival_s[first]
        curve = SurvivalCurve()
        for length in trace.output_tokens[ends <= now_s]:
            curve.observe(int(length))
        running = (ends > now_s) & (trace.arrival_s < now_s)
        reached = (now_s - trace.arrival_s[running] - DELAY_S) / TOKEN_S
        curve.censor(np.floor(reached[reached > 0]).astype(np.int64))
        expected = curve.quantile(0.8)
        block = found[first : first + SURVIVAL_EVERY]
        assert (block == (PRIOR_TOKENS if expected is None else expected)).all()


def test_kaplan_meier_by_hand():
    """Ends at 2, 3, 5 and 8; running at 3 and 6: S = 5/6, 4/6, 4/6 * 2/3, 0."""
    curve = SurvivalCurve()
    for length in (2, 3, 5, 8):
        curve.observe(length)
    curve.censor(np.array([3, 6]))
    assert [curve.probability(t) for t in (0, 1, 2, 3, 4, 5, 7, 8)] == pytest.approx(
        [1, 1, 5 / 6, 4 / 6, 4 / 6, 4 / 9, 4 / 9, 0]
    )
    assert curve.quantile(0.5) == 5
    assert curve.quantile(0.9) == 8
    assert curve.quantile(0.5, produced_tokens=5) == 8
    assert curve.quantile(0.5, produced_tokens=8) is None
    expected = 1 + 1 + 5 / 6 + 4 / 6 + 4 / 6 + 3 * 4 / 9
    assert curve.expected_left(0) == pytest.approx(expected)
    assert curve.expected_left(5) == pytest.approx(3.0)


observations = st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=40)


@given(observations)
def test_kaplan_meier_equals_its_product(rows):
    curve = SurvivalCurve()
    for length, ended in rows:
        if ended:
            curve.observe(length)
    curve.censor(np.array([length for length, ended in rows if not ended], np.int64))
    survival = 1.0
    for t in range(1, 32):
        at_risk = sum(length >= t for length, _ in rows)
        deaths = sum(length == t and ended for length, ended in rows)
        if at_risk:
            survival *= 1 - deaths / at_risk
        assert curve.probability(t) == pytest.approx(survival)


@given(observations)
def test_weights_are_the_falls_of_the_curve(rows):
    lengths, ended = (np.array(x) for x in zip(*rows, strict=True))
    weights = survival_weights(lengths, ended)
    assert weights.sum() == pytest.approx(1.0)
    curve = SurvivalCurve()
    for length in lengths[ended]:
        curve.observe(int(length))
    curve.censor(lengths[~ended])
    for t in range(1, int(lengths.max())):
        assert weights[lengths > t].sum() == pytest.approx(curve.probability(t))


def test_weights_of_nothing():
    assert survival_weights(np.zeros(0, np.int64), np.zeros(0, np.bool_)).shape == (0,)


def test_to_leave_running_answers_out_is_biased_towards_short_ones():
    rng = np.random.default_rng(7)
    length = rng.geometric(0.005, 20_000)
    watched = rng.integers(1, 600, len(length))
    ended = length <= watched
    curve = SurvivalCurve()
    for tokens in length[ended]:
        curve.observe(int(tokens))
    curve.censor(watched[~ended])
    true = (length > 200).mean()
    assert curve.probability(200) == pytest.approx(true, abs=0.02)
    assert (length[ended] > 200).mean() < true - 0.1


def test_error_summary():
    found = error_summary(np.array([10, 30, 5], np.int32), np.array([10, 20, 10], np.int32), 0.9)
    assert found == pytest.approx(
        {
            "mean_relative_error": 1 / 3,
            "median_relative_error": 0.5,
            "too_short": 1 / 3,
            "pinball_tokens": (0.1 * 10 + 0.9 * 5) / 3,
        }
    )


def test_absurd_predictions_stay_whole_numbers_of_tokens():
    trace = sample(2000, longest=100_000)
    wild = predicted(trace, "lognormal:5")
    assert wild.min() >= 1
    assert wild.max() == LONGEST
    assert whole(np.array([0.0, -3.0, 1e300])).tolist() == [1, 1, LONGEST]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_predictions_that_are_no_numbers(value):
    with pytest.raises(InputError, match="predicted length of request 1 is"):
        whole(np.array([3.0, value]))


@pytest.mark.parametrize(
    "text",
    ["constant:0", "constant:inf", "constant:nan", "constant", "noisy:1", "noisy:-0.1",
     "over:0.5", "over:inf", "quantile:0", "quantile:1", "survival:x", "oracle:3", "mean:1"],
)  # fmt: skip
def test_bad_parameters(text):
    with pytest.raises(InputError, match=f"length predictor {text.split(':')[0]}"):
        parse_predictor(text)


def test_unknown_predictors_suggest_a_name():
    with pytest.raises(InputError, match="quantile"):
        parse_predictor("quantil:0.5")


@pytest.mark.parametrize("kind", ["oracle", "survival:0.5", "constant:9"])
def test_a_history_serves_only_what_it_can_learn(kind):
    with pytest.raises(InputError, match="does not learn from ended answers alone"):
        LengthHistory(parse_predictor(kind))


def test_an_empty_answer_is_no_answer():
    with pytest.raises(InputError, match="at least one token"):
        LengthHistory(parse_predictor("mean")).observe(0)
    with pytest.raises(InputError, match="at least one token"):
        SurvivalCurve().observe(0)
