import numpy as np
import pytest
from engines_made_up import made_up
from hypothesis import given
from hypothesis import strategies as st
from virtual_engine import VirtualEngine

from gpusched.calibration.design import (
    PRIOR,
    Limits,
    batches,
    candidates,
    choose,
    cost_s,
    information,
    ladder,
    log_determinant,
)
from gpusched.calibration.fit import Fit, fit
from gpusched.calibration.rows import rows_of
from gpusched.calibration.stage import Stage

LIMITS = Limits(16, 2048, 131_072, 1024)
SECONDS = 30.0


@pytest.fixture(scope="module")
def pilot() -> Fit:
    engine = VirtualEngine(made_up())
    rows = []
    for i, stage in enumerate(
        (Stage(1, 16, 60, (16, 256, 1000)), Stage(8, 64, 60, (16, 64)), Stage(16, 16, 40, ()))
    ):
        rows += rows_of(engine.run(stage), i, 1024)
    return fit(rows)


def value(stages: list[Stage], pilot: Fit) -> float:
    grid = candidates(LIMITS)
    infos = np.stack([information(stage, pilot, LIMITS) for stage in grid])
    scale = np.sqrt(np.einsum("nii->i", infos) / len(infos))
    total = sum((information(s, pilot, LIMITS) for s in stages), start=np.zeros((len(scale),) * 2))
    return log_determinant(total / np.outer(scale, scale) + PRIOR * np.eye(len(scale)))


def test_better_than_random_designs_of_the_same_price(pilot: Fit) -> None:
    grid = candidates(LIMITS)
    ours = value(choose(grid, pilot, LIMITS, SECONDS), pilot)
    rng = np.random.default_rng(0)
    costs = [cost_s(stage, pilot, LIMITS.budget) for stage in grid]
    for _ in range(30):
        drawn: list[Stage] = []
        spent = 0.0
        for i in rng.permutation(len(grid)):
            if spent + costs[i] <= SECONDS:
                drawn.append(grid[i])
                spent += costs[i]
        assert ours > value(drawn, pilot)


def test_no_single_exchange_improves(pilot: Fit) -> None:
    grid = candidates(LIMITS)[::7]
    chosen = choose(grid, pilot, LIMITS, 12.0)
    # the optimum of the greedy start and exchanges, judged as choose judges it
    infos = np.stack([information(stage, pilot, LIMITS) for stage in grid])
    scale = np.sqrt(np.maximum(np.einsum("nii->i", infos) / len(infos), 1e-300))
    infos /= np.outer(scale, scale)
    at = [grid.index(stage) for stage in chosen]
    total = PRIOR * np.eye(len(scale)) + infos[at].sum(axis=0)
    costs = np.array([cost_s(stage, pilot, LIMITS.budget) for stage in grid])
    best = log_determinant(total)
    for out in range(len(at)):
        for into in range(len(grid)):
            if costs[at].sum() - costs[at[out]] + costs[into] <= 12.0:
                swapped = log_determinant(total - infos[at[out]] + infos[into])
                assert swapped <= best + 1e-6


def test_time_and_limits_are_kept(pilot: Fit) -> None:
    chosen = choose(candidates(LIMITS), pilot, LIMITS, SECONDS)
    assert sum(cost_s(stage, pilot, LIMITS.budget) for stage in chosen) <= SECONDS
    for stage in chosen:
        longest = max(stage.probes, default=0)
        assert stage.batch + bool(stage.probes) <= 16
        assert stage.prompt_tokens + stage.output_tokens <= 2048
        assert longest < 2048
        needed = stage.batch * (stage.prompt_tokens + stage.output_tokens) + longest
        assert needed <= 0.9 * 131_072


def test_costs_are_what_the_engine_takes(pilot: Fit) -> None:
    for stage in candidates(LIMITS)[::40]:
        engine = VirtualEngine(made_up())
        engine.run(stage)
        assert cost_s(stage, pilot, LIMITS.budget) == pytest.approx(engine.now_s, rel=0.5)


def test_small_batches_are_all_candidates() -> None:
    assert batches(4) == [1, 2, 3, 4]
    assert batches(16)[:8] == list(range(1, 9))
    assert batches(16)[-1] == 16
    assert batches(1) == [1]


def test_nothing_affordable_gives_the_cheapest(pilot: Fit) -> None:
    grid = candidates(LIMITS)
    (stage,) = choose(grid, pilot, LIMITS, 0.0)
    assert cost_s(stage, pilot, LIMITS.budget) == min(cost_s(s, pilot, 1024) for s in grid)


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(1.2, 8.0))
def test_ladders_reach_both_ends(a: int, b: int, factor: float) -> None:
    low, high = sorted((a, b))
    steps = ladder(low, high, factor)
    assert steps[0] == low
    assert steps[-1] == high
    assert steps == sorted(set(steps))
