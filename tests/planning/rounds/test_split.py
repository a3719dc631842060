"""The split of workers between phases against worked instances, brute force and HiGHS."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.rounds.even_split import even_split, phase_program
from gpusched.planning.rounds.nodes import fit_nodes, nested
from gpusched.planning.rounds.problem import SplitProblem
from gpusched.planning.rounds.split import (
    best_split,
    best_splits,
    capacity_of,
    every_split,
    program_split,
)

SIZES = (1, 2, 4)
PRE, DEC = (1.0, 1.9, 3.4), (0.8, 1.7, 3.0)
LOADS = (6.0, 4.0)


def problem(gpus, pre=PRE, dec=DEC, loads=LOADS, sizes=SIZES, **options):
    return SplitProblem.of(sizes, pre, dec, loads, gpus, **options)


def brute_force(case):
    return max(
        (capacity_of(case, x, y) for x, y in every_split(case)),
        key=lambda pair: pair,
        default=(0.0, 0.0),
    )


@pytest.mark.parametrize("solve", [best_split, program_split])
def test_worked_instances(solve):
    first = solve(problem(8))
    assert first.load == pytest.approx(1.5)
    assert first.prefill == (4, 0, 0)
    masked = {"pre": (0, 1.9, 3.4), "dec": (0, 1.7, 3.0)}
    for gpus, load in ((8, 30 / 19), (12, 1.052632), (16, 4 / 5.1)):
        assert solve(problem(gpus, **masked)).load == pytest.approx(load, rel=1e-6)
    assert solve(problem(8, **masked)).prefill == (0, 2, 0)
    unlike = {"pre": (0.9, 2.2, 3.9), "dec": (0.5, 1.4, 3.6)}
    split = solve(problem(8, **unlike))
    assert split.counts == ((0, 2, 0), (0, 0, 1))
    assert split.load == pytest.approx(6 / 4.4)
    assert solve(problem(12, **unlike)).load == pytest.approx(0.909091, rel=1e-6)


def test_169_plans_agree_with_both_solvers():
    case = problem(8)
    assert brute_force(case)[0] == pytest.approx(2 / 3)
    assert brute_force(case)[0] == pytest.approx(best_split(case).capacity)


speeds = st.lists(st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.3, 1.9, 2.2, 3.1]), min_size=3, max_size=3)


@given(st.integers(2, 9), speeds, speeds, st.floats(0.2, 9.0), st.floats(0.2, 9.0))
def test_dynamic_program_is_exact(gpus, pre, dec, load_pre, load_dec):
    case = problem(gpus, pre, dec, (load_pre, load_dec))
    expected = brute_force(case)
    if expected[0] == 0:
        with pytest.raises(InfeasibleError):
            best_split(case)
        return
    found = best_split(case)
    assert found.capacity == pytest.approx(expected[0], rel=1e-12)
    assert program_split(case).capacity == pytest.approx(expected[0], rel=1e-6)
    ranked = sorted(np.round([capacity_of(case, x, y) for x, y in every_split(case)], 12).tolist())
    ranked = ranked[::-1]
    ranked = [pair for pair in ranked if pair[0] > 0]
    shortlist = best_splits(case, 7)
    got = [capacity_of(case, s.prefill, s.decode) for s in shortlist]
    assert np.allclose(got, ranked[:7])
    assert len({s.counts for s in shortlist}) == len(shortlist)


@given(
    st.integers(1, 6), st.integers(1, 6), speeds, speeds, speeds, speeds, st.floats(0.5, 4.0)
)  # fmt: skip
def test_two_gpu_types_are_more_columns(first, second, pre, dec, other_pre, other_dec, load):
    case = SplitProblem(
        size=np.array([*SIZES, *SIZES]),
        prefill_speed=np.array([*pre, *other_pre]),
        decode_speed=np.array([*dec, *other_dec]),
        prefill_load=load,
        decode_load=1.0,
        group=np.repeat([0, 1], 3),
        gpus=np.array([first, second]),
        per_node=np.array([4, 4]),
        kv_tokens=np.zeros(6),
    )
    try:
        found = best_split(case)
    except InfeasibleError:
        with pytest.raises(InfeasibleError):
            program_split(case)
        return
    assert found.capacity == pytest.approx(program_split(case).capacity, rel=1e-6)
    both = np.add(found.prefill, found.decode)
    assert all((both * case.size)[case.group == g].sum() <= n for g, n in enumerate(case.gpus))


@given(st.integers(2, 40), st.floats(0.5, 8.0), st.floats(0.5, 8.0), st.floats(0.1, 10.0))
def test_scaling(gpus, load_pre, load_dec, factor):
    split = best_split(problem(gpus, loads=(load_pre, load_dec)))
    assert best_split(problem(gpus + 1, loads=(load_pre, load_dec))).load <= split.load + 1e-12
    scaled = best_split(problem(gpus, loads=(factor * load_pre, factor * load_dec)))
    assert scaled.load == pytest.approx(factor * split.load)
    doubled = best_split(problem(2 * gpus, loads=(2 * load_pre, 2 * load_dec)))
    assert doubled.load <= split.load + 1e-12


def test_equal_speed_per_gpu_splits_gpus_as_the_work():
    split = best_split(problem(400, pre=(2.0, 4.0, 8.0), dec=(1.0, 2.0, 4.0), loads=(4.0, 1.0)))
    used = np.dot(split.prefill, SIZES)
    assert used / (400 - used) == pytest.approx((4.0 / 2.0) / (1.0 / 1.0), rel=0.02)


def test_one_gpu_is_too_few():
    with pytest.raises(InfeasibleError, match="too few"):
        best_split(problem(1))
    with pytest.raises(InfeasibleError, match="may decode"):
        best_split(problem(8, dec=(0, 0, 0)))
    with pytest.raises(InputError, match="load"):
        problem(8, loads=(0.0, 1.0))


def test_held_kv_cache_forces_decode_workers():
    free = problem(8)
    held = SplitProblem(
        **{**free.__dict__, "kv_tokens": np.array([1e5, 3e5, 7e5]), "held_tokens": 1.05e6}
    )
    split = best_split(held)
    assert np.dot(split.decode, held.kv_tokens) >= 1.05e6
    assert split.capacity <= best_split(free).capacity
    best = max(
        capacity_of(held, x, y)[0] for x, y in every_split(held) if y @ held.kv_tokens >= 1.05e6
    )
    assert split.capacity == pytest.approx(best, rel=1e-6)


def test_workers_of_three_gpus_do_not_straddle_nodes():
    case = SplitProblem.of((2, 3), (0.0, 3.0), (0.0, 3.0), (1.0, 1.0), 16, per_node=8)
    split = best_split(case)
    assert sum(split.prefill) + sum(split.decode) == 4  # two in a node, though five would fit 16
    assert fit_nodes(np.array([2, 4]), np.array([2, 3]), 8, 2)
    assert not fit_nodes(np.array([0, 5]), np.array([2, 3]), 8, 2)
    assert nested(np.array([1, 2, 8]), 8)
    assert not nested(np.array([4]), 6)


def test_even_split_worked_instance():
    found = even_split(SIZES, (1, 0.55, 0.32), (0.05, 0.03, 0.02), (10, 120), 8)
    assert found.time_s == pytest.approx(2.0)
    assert (found.prefill, found.decode) == ((5, 0, 0), (3, 0, 0))


@given(st.integers(2, 7), st.data())
def test_even_split_is_the_literal_program(gpus, data):
    times = st.lists(st.sampled_from([0.2, 0.35, 0.6, 1.0, np.inf]), min_size=3, max_size=3)
    pre, dec = data.draw(times), data.draw(times)
    size = np.array(SIZES)
    best = np.inf
    for x in product(*(range(gpus // n + 1) for n in SIZES)):
        for y in product(*(range(gpus // n + 1) for n in SIZES)):
            if sum(x) and sum(y) and int((np.add(x, y)) @ size) <= gpus:
                slow = max(
                    max(8 * pre[i] / sum(x) for i in range(3) if x[i]),
                    max(5 * dec[i] / sum(y) for i in range(3) if y[i]),
                )
                best = min(best, slow)
    if not np.isfinite(best):
        with pytest.raises(InfeasibleError):
            even_split(SIZES, pre, dec, (8, 5), gpus)
        return
    assert even_split(SIZES, pre, dec, (8, 5), gpus).time_s == pytest.approx(best)


def test_even_split_against_highs():
    pre, dec, gpus = np.array([1, 0.55, 0.32]), np.array([0.05, 0.03, 0.02]), 8
    size = np.array(SIZES)
    best = np.inf
    for used in range(1, gpus):
        phases = [
            min(
                phase_program(size, whole, workers, m)[0].solve().objective
                for workers in range(1, m + 1)
            )
            for whole, m in ((10 * pre, used), (120 * dec, gpus - used))
        ]
        best = min(best, max(phases))
    assert best == pytest.approx(2.0, rel=1e-6)
