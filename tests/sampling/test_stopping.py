"""Stopping rules, lookahead and decided votes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.sampling.ballot import EMPTY, Ballot, Tally
from gpusched.sampling.stopping import (
    Agreement,
    BayesFactor,
    Beta,
    Confidence,
    Dirichlet,
    Fixed,
    Window,
    decided,
    futility,
    lookahead,
)

B = (2, 5, 10, 30, 100, 300, 1000, 3000, 10_000)


@pytest.mark.parametrize(
    ("prior", "needed"),
    [("paper", (1, 2, 2, 3, 5, 6, 7, 9, 10)), ("repo", (1, 2, 3, 4, 6, 8, 9, 11, 13))],
)
def test_unanimous_votes_needed(prior, needed):
    found = tuple(lookahead(BayesFactor(b, prior=prior), EMPTY, 100) for b in B)
    assert found == needed


def tally_of(answers):
    ballot = Ballot()
    for answer in answers:
        if answer is None:
            ballot.add_blank()
        else:
            ballot.add(answer)
    return ballot


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=30))
def test_ballot_counts(answers):
    ballot = tally_of(answers)
    given_ = [a for a in answers if a is not None]
    counts = sorted((given_.count(a) for a in set(given_)), reverse=True)
    tally = ballot.tally
    assert list(tally.counts) == counts
    assert tally.blank == answers.count(None)
    if given_:
        top = counts[0]
        reached = {}
        for at, answer in enumerate(given_):
            if given_[: at + 1].count(answer) == top:
                reached.setdefault(answer, at)
        assert ballot.leader == min(reached, key=reached.get)
        run = next((i for i, a in enumerate(reversed(given_)) if a != given_[-1]), len(given_))
        assert tally.run == run
        assert tally.run_leads == (given_[-1] == ballot.leader)
    else:
        assert ballot.leader is None
        assert tally.lead == 0


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 10),
    st.sampled_from([BayesFactor(10), Confidence(0.9), Beta(), Window(3), Agreement(), Fixed(12)]),
)  # fmt: skip
def test_lookahead_is_the_least_number_of_leaders_votes(answers, most, rule):
    ballot = tally_of(answers)
    needed = lookahead(rule, ballot.tally, most)
    leader = ballot.leader
    first = most
    for more in range(1, most):
        ballot.add(leader)
        if rule.stops(ballot.tally) or decided(ballot.tally, most - more):
            first = more
            break
    assert needed == first


def test_no_new_answer_stops_before_the_lookahead():
    """Waves waste nothing: from any state to ten votes, no other vote crosses first."""

    def states(total, largest):
        if total == 0:
            yield ()
        for first in range(min(total, largest), 0, -1):
            for rest in states(total - first, first):
                yield (first, *rest)

    for threshold in (5, 10, 30, 100):
        rule = BayesFactor(threshold)
        for n in range(1, 11):
            for counts in states(n, n):
                tally = Tally(counts, 1, True)
                if rule.stops(tally) or lookahead(rule, tally, 100) < 2:
                    continue
                raised = [
                    tuple(sorted((*counts[:i], counts[i] + 1, *counts[i + 1 :]), reverse=True))
                    for i in range(len(counts))
                ]
                for other in (*raised, (*counts, 1)):
                    assert not rule.stops(Tally(other, 1, False))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.data())
def test_decided_votes_stay(answers, data):
    ballot = tally_of(answers)
    left = data.draw(st.integers(0, 6))
    if decided(ballot.tally, left):
        leader = ballot.leader
        for answer in data.draw(st.lists(st.sampled_from("abcd"), min_size=left, max_size=left)):
            ballot.add(answer)
        assert ballot.leader == leader


def test_published_behaviour_of_the_baselines():
    assert lookahead(Beta(0.95), EMPTY, 40) == 4
    assert lookahead(Window(5), EMPTY, 40) == 5
    assert lookahead(Agreement(), EMPTY, 40) == 2
    assert lookahead(Dirichlet(), EMPTY, 40) == 3
    assert not Window(3).stops(tally_of("abbb").tally)
    assert Window(3).stops(tally_of("abcbbb").tally)
    assert not Agreement().stops(tally_of("aaabbb").tally)
    assert Agreement().stops(tally_of("aaba").tally)
    assert Fixed(3).stops(tally_of(["a", None, None]).tally)


def test_dirichlet_of_two_answers_is_beta():
    for first in range(1, 15):
        for second in range(1, first + 1):
            tally = Tally((first, second), 1, False)
            for level in (0.6, 0.9, 0.95):
                assert Dirichlet(level, 1).stops(tally) == Beta(level).stops(tally)


def test_confidence_is_the_posterior():
    assert not Confidence(0.98).stops(Tally((3,), 3, True))
    assert Confidence(0.97).stops(Tally((3,), 3, True))
    assert not Confidence(0.5).stops(EMPTY)


def test_futility_against_exact_unanimity():
    """Two more of two votes must agree: (2)/(2.3) x (3)/(3.3) x ... for a window of four."""
    rule = Window(4)
    tally = tally_of("aa").tally
    exact = (2 / 2.3) * (3 / 3.3)
    found = futility(rule, tally, 2, draws=4000, seed=1)
    assert abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000)
    assert futility(BayesFactor(1e6), Tally((5, 5), 1, True), 3) == 0.0


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: BayesFactor(0.0), "threshold"), (lambda: BayesFactor(float("nan")), "threshold"),
        (lambda: BayesFactor(10, alpha=-1), "alpha"), (lambda: Confidence(1.0), "confidence"),
        (lambda: Beta(2.0), "level"), (lambda: Window(0), "size"), (lambda: Fixed(0), "samples"),
        (lambda: Agreement(0.0), "level"), (lambda: Dirichlet(0.9, 0), "least_votes"),
    ],
)  # fmt: skip
def test_bad_input(make, word):
    with pytest.raises(InputError, match=word):
        make()
