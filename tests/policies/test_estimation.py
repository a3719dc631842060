"""Thresholds learned from traffic: what is estimated, how it follows, what it may know."""

import numpy as np
import pytest

from gpusched.policies.batching.discipline import discipline
from gpusched.policies.batching.equilibrium import AffineTime, equilibrium
from gpusched.policies.batching.estimation import (
    ENOUGH,
    RATE_MEMORY_S,
    SAMPLE,
    SAMPLE_SPAN_S,
    GroupEstimator,
    Load,
    groups_of,
    prior_ends,
)
from gpusched.policies.batching.thresholds import ENDLESS

TIME = AffineTime(0.02, 1e-6)
KV_TOKENS = 137_000.0


def estimator(text="wait", **settings):
    return GroupEstimator(discipline(text), TIME, KV_TOKENS, seats=256, **settings)


def lengths(n, seed=0):
    rng = np.random.default_rng(seed)
    prompt = rng.integers(50, 300, n)
    return prompt, np.minimum(rng.geometric(0.008, n), 900)


def watch(learner, arrivals, prompt, output, until_s, token_s=0.03):
    """Tell an estimator of requests that take ``token_s`` a token, as known at a time."""
    seen = np.flatnonzero(arrivals <= until_s)
    numbers = learner.observe_arrival(arrivals[seen], prompt[seen], output[seen])
    end_s = arrivals[seen] + token_s * output[seen]
    done = end_s <= until_s
    learner.observe_end(numbers[done], output[seen][done])
    reached = ((until_s - arrivals[seen]) / token_s).astype(int)
    learner.censor(numbers[~done], reached[~done])


def test_nobody_is_held_before_anything_is_known():
    learner = estimator("wait+segments=4")
    first = learner.groups
    assert first.ends.tolist() == [64, 256, 1024, ENDLESS]
    assert first.hold_s == 0.0
    assert first.thresholds.tolist() == first.caps.tolist() == [256] * 4
    numbers = learner.observe_arrival(np.arange(100.0), 50, 30)
    learner.observe_end(numbers[: ENOUGH - 1], 30)
    assert learner.thresholds(100.0) is first
    learner.observe_end(numbers[ENOUGH - 1], 30)
    assert learner.thresholds(100.0) is not first


@pytest.mark.parametrize(("groups", "ends"), [(1, []), (2, [64]), (3, [64, 1024])])
def test_ends_of_few_groups(groups, ends):
    assert prior_ends(groups).tolist() == [*ends, ENDLESS]


@pytest.mark.parametrize("text", ["wait+segments=4", "nested-wait+segments=4"])
def test_thresholds_come_to_those_of_the_true_traffic(text):
    rate, n = 60.0, 40_000
    prompt, output = lengths(n)
    arrivals = np.cumsum(np.random.default_rng(1).exponential(1 / rate, n))
    learner = estimator(text)
    watch(learner, arrivals, prompt, output, float(arrivals[-1]))
    learned = learner.thresholds(float(arrivals[-1]))
    ends = np.array([63, 255, 1023, 1024])
    group = np.searchsorted(ends[:-1], output - 1) if learner.nested is False else np.zeros(n, int)
    rates = rate * np.bincount(group, minlength=1 if learner.nested else 4) / n
    true = Load(rates, ends, prompt.astype(float), output.astype(float), np.ones(n), group)
    known = groups_of(learner.chosen, true, TIME, KV_TOKENS)
    assert learned.thresholds == pytest.approx(known.thresholds, rel=0.15, abs=1)
    assert learned.seats == min(known.seats, 256)
    assert learned.hold_s == pytest.approx(known.hold_s, rel=0.15)
    load = learner.load(float(arrivals[-1]))
    assert load.rate_rps.sum() == pytest.approx(rate, rel=0.05)
    tokens = np.average(load.output_tokens, weights=load.weight * load.rate_rps[load.group])
    assert tokens == pytest.approx(output.mean(), rel=0.05)


def test_running_answers_are_not_left_out():
    """Soon after the start mostly short answers have ended; their mean alone is far too low."""
    n = 4000
    prompt, output = lengths(n)
    arrivals = np.sort(np.random.default_rng(2).uniform(0.0, 8.0, n))
    learner = estimator("nested-wait")
    watch(learner, arrivals, prompt, output, 8.0)
    load = learner.load(8.0)
    ended = output[arrivals + 0.03 * output <= 8.0]
    true = np.minimum(output, 8.0 / 0.03).mean()
    assert ended.mean() < 0.75 * true
    assert np.average(load.output_tokens, weights=load.weight) == pytest.approx(true, rel=0.06)


def test_rates_follow_a_step():
    learner = estimator("nested-wait+segments=1")
    prompt, output = lengths(20_000)
    slow = np.arange(0.0, 300.0, 0.1)
    fast = 300.0 + np.arange(0.0, 600.0, 0.025)
    arrivals = np.concatenate((slow, fast))[:20_000]
    found = []
    for end_s in (300.0, 330.0, 390.0, 600.0):
        told = learner.arrived
        now = arrivals[told:][arrivals[told:] <= end_s]
        rows = np.arange(told, told + len(now))
        numbers = learner.observe_arrival(now, prompt[rows])
        learner.observe_end(numbers, output[rows])
        found.append(float(learner.load(end_s).rate_rps[0]))
    gone = np.exp(-np.array([0.0, 30.0, 90.0, 300.0]) / RATE_MEMORY_S)
    assert found == pytest.approx(40.0 - 30.0 * gone, rel=0.03)


def test_rates_are_unbiased_from_the_start_and_shared_by_the_engines():
    learner = estimator("nested-wait", engines=4, start_s=1000.0)
    numbers = learner.observe_arrival(1000.0 + np.arange(0.05, 10.0, 0.1), 100)
    learner.observe_end(numbers, 50)
    assert learner.load(1010.0).rate_rps[0] == pytest.approx(10.0 / 4, rel=0.01)


def test_small_changes_are_let_pass():
    prompt, output = lengths(12_300)
    learner = estimator("nested-wait+segments=2")

    def tell(start_s, rate, count):
        rows = learner.arrived + np.arange(count)
        numbers = learner.observe_arrival(start_s + np.arange(count) / rate, prompt[rows])
        learner.observe_end(numbers, output[rows])

    tell(0.0, 20.0, 6000)
    before = learner.thresholds(300.0)
    tell(300.0, 20.5, 300)
    assert learner.thresholds(315.0) is before
    tell(315.0, 30.0, 6000)
    after = learner.thresholds(515.0)
    assert after is not before
    assert after.thresholds[0] > 1.1 * before.thresholds[0]


def test_the_sample_is_bounded_and_spans_its_time():
    learner = estimator("nested-wait")
    rate = 200.0
    for minute in range(12):
        learner.observe_arrival(60.0 * minute + np.arange(0.0, 60.0, 1 / rate), 100)
    assert len(learner.numbers) == SAMPLE
    spanned = (learner.numbers[-1] - learner.numbers[0]) / rate
    assert spanned >= 0.9 * SAMPLE_SPAN_S


def test_requests_that_left_the_sample_are_ignored():
    learner = estimator("nested-wait")
    numbers = learner.observe_arrival(np.linspace(0, 1e4, 3 * SAMPLE), 100)
    learner.observe_end(numbers[:SAMPLE], 50)
    assert learner.load(1e4) is None
    learner.observe_end(int(numbers[-1]), 50)
    learner.observe_end(numbers[-ENOUGH:], 50)
    assert learner.load(1e4) is not None


def test_traffic_that_ceases_leaves_thresholds_as_they_are():
    learner = estimator("wait")
    numbers = learner.observe_arrival(np.arange(0.0, 100.0, 0.05), 100, 50)
    learner.observe_end(numbers, 50)
    before = learner.thresholds(100.0)
    assert learner.load(1e6) is None
    assert learner.thresholds(1e6) is before


def test_a_group_of_which_no_answer_has_begun_counts_as_absent():
    learner = estimator("wait+segments=4")
    numbers = learner.observe_arrival(np.arange(0.0, 100.0, 0.1), 100, 50)
    learner.observe_end(numbers, 50)
    learner.observe_arrival(np.full(50, 100.0), 100, 2000)
    load = learner.load(100.0)
    assert load.rate_rps[0] > 8
    assert load.rate_rps[1:].tolist() == [0.0, 0.0, 0.0]
    assert learner.thresholds(100.0).thresholds.tolist() == [1, 1, 1, 1]


def test_an_overload_gets_the_thresholds_of_a_stable_load():
    prompt, output = lengths(30_000)
    arrivals = np.arange(30_000) / 400.0
    learner = estimator("nested-wait+segments=1")
    watch(learner, arrivals, prompt, output, 75.0)
    load = learner.load(75.0)
    balance = equilibrium(load.types(0), TIME, KV_TOKENS)
    assert not balance.stable
    found = learner.thresholds(75.0)
    assert found.thresholds[0] > 1
    settled = groups_of(learner.chosen, load, TIME, KV_TOKENS)
    assert "are unstable, at most" in settled.note
    assert settled.thresholds.tolist() == found.thresholds.tolist()


def test_order_of_telling_is_all_that_matters():
    """One by one, as a server would, equals all at once, as the simulator does."""
    prompt, output = lengths(500)
    arrivals = np.cumsum(np.random.default_rng(3).exponential(0.1, 500))
    together, singly = estimator("wait"), estimator("wait")
    numbers = together.observe_arrival(arrivals, prompt, output)
    together.observe_end(numbers, output)
    for at_s, p, o in zip(arrivals, prompt, output, strict=True):
        number = singly.observe_arrival(at_s, p, o)
        singly.observe_end(number, o)
    ours, theirs = together.load(60.0), singly.load(60.0)
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b)
