"""On-time ordering of prompts against all permutations, and in a live queue."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.policies.batching.discipline import discipline
from gpusched.policies.batching.live import LiveQueue
from gpusched.policies.batching.on_time import LONGEST, MOST_EXACT, SETS, next_on_time
from gpusched.policies.views import Engine, Request


def first(durations, deadlines, passed=None, window=None, now_s=0.0):
    n = len(durations)
    return next_on_time(
        np.array(durations, float), np.array(deadlines, float),
        np.array(passed or [0] * n), n, window or n, now_s,
        np.zeros(SETS), np.zeros(SETS, np.int64), np.zeros(SETS),
    )  # fmt: skip


def serve(durations, deadlines, window):
    """Dispatch one after the other; return which are on time, and the order."""
    waiting, now_s, done, passed = list(range(len(durations))), 0.0, [], [0] * len(durations)
    on_time = 0
    while waiting:
        near = waiting[:window]
        j = first(
            [durations[i] for i in near], [deadlines[i] for i in near],
            [passed[i] for i in near], window, now_s,
        )  # fmt: skip
        for i in near[:j]:
            passed[i] += 1
        chosen = near[j]
        waiting.remove(chosen)
        now_s += durations[chosen]
        on_time += now_s <= deadlines[chosen]
        done.append(chosen)
    return on_time, done


def value(order, durations, deadlines):
    end_s = total_s = 0.0
    count = 0
    for j in order:
        end_s += durations[j]
        total_s += end_s
        count += end_s <= deadlines[j]
    return count, -total_s


JOBS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60)), min_size=1, max_size=6)


def test_worked_instance():
    """Three tasks of which b, c, a and c, b, a are all on time; the second completes sooner."""
    durations, deadlines = [5, 2, 1], [9, 3, 4]
    counts = {
        "".join("abc"[j] for j in order): value(order, durations, deadlines)[0]
        for order in permutations(range(3))
    }
    assert counts == {"abc": 1, "acb": 1, "bac": 2, "bca": 3, "cab": 2, "cba": 3}
    assert serve(durations, deadlines, 3) == (3, [2, 1, 0])


@given(JOBS)
def test_equals_all_permutations(jobs):
    durations, deadlines = zip(*jobs, strict=True)
    orders = list(permutations(range(len(jobs))))
    best = max(value(order, durations, deadlines) for order in orders)
    wanted = next(o for o in orders if value(o, durations, deadlines) == best)
    assert first(durations, deadlines) == wanted[0]
    on_time, _ = serve(durations, deadlines, len(jobs))
    assert on_time == best[0]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60)), min_size=1, max_size=30))
def test_window_of_one_is_first_come_and_wider_ones_are_no_later(jobs):
    durations, deadlines = zip(*jobs, strict=True)
    _, order = serve(durations, deadlines, 1)
    assert order == list(range(len(jobs)))
    whole = jobs[: min(len(jobs), MOST_EXACT)]
    durations, deadlines = zip(*whole, strict=True)
    assert (
        serve(durations, deadlines, len(whole))[0]
        >= value(range(len(whole)), durations, deadlines)[0]
    )


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50)), min_size=9, max_size=14))
def test_moore_hodgson_is_most_on_time(jobs):
    durations, deadlines = zip(*jobs, strict=True)
    # most on time by dynamic program over the sum of durations, jobs by deadline
    best = {0: 0}
    for duration, deadline in sorted(jobs, key=lambda job: job[1]):
        for total, count in sorted(best.items(), reverse=True):
            if total + duration <= deadline:
                best[total + duration] = max(best.get(total + duration, 0), count + 1)
    assert serve(durations, deadlines, len(jobs))[0] == max(best.values())


def test_one_overtaken_too_often_goes_first():
    assert first([9, 1, 1], [100, 2, 3], [6, 0, 0]) == 1
    assert first([9, 1, 1], [100, 2, 3], [7, 0, 0]) == 0
    # a steady stream of short ones lets the long first one wait 2 w + 1 times, not for ever
    durations, deadlines = [9] + [1] * 40, [0] + [1000] * 40
    _, order = serve(durations, deadlines, 3)
    assert order.index(0) == 7


ENGINE = Engine(0.0, 0, 32, 10**6, 10**6)


def queue(text, **options):
    return LiveQueue(discipline(text), 10**6, prefill_s=lambda r: r.prompt_tokens / 100, **options)


def test_live_queue_starts_in_the_same_order():
    rng = np.random.default_rng(3)
    prompts = rng.integers(10, 400, 30)
    live = queue("on-time+window=4+ttft_s=8")
    for i, prompt in enumerate(prompts):
        live.add(i, Request(i * 0.1, int(prompt), 0, 0, 0), ENGINE)
    order, now_s = [], 0.0
    while len(live):
        key = next(iter(live.candidates(ENGINE._replace(now_s=now_s), 0, 10**6)))
        live.start(key)
        order.append(key)
        now_s += prompts[key] / 100
    assert order == serve(prompts / 100, np.arange(30) * 0.1 + 8, 4)[1]
    assert order != sorted(order)


def test_live_queue_leaves_what_does_not_start_in_its_place():
    live = queue("on-time+ttft_s=3")
    for i, prompt in enumerate((900, 100, 200)):
        live.add(i, Request(0.0, prompt, 0, 0, 0), ENGINE)
    assert list(live.candidates(ENGINE, 0, 10**6)) == [1]
    assert list(live.candidates(ENGINE, 1, 10**6)) == [1]


def test_bad_parameters_are_refused():
    with pytest.raises(InputError, match=f"window must be a number from 1 to {LONGEST}"):
        discipline("on-time+window=0")
    with pytest.raises(InputError, match="needs prefill_s"):
        LiveQueue(discipline("on-time"), 100)
