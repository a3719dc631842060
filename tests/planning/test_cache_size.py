from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.cache_size.carbon import CacheChoices, cache_choices
from gpusched.planning.cache_size.schedule import schedule_cache

SIZES = np.array([0.0, 4.0, 8.0, 16.0])
HIT = np.array([0.0, 0.35, 0.5, 0.6])
RATE = np.array([1.0, 2.0, 2.0, 0.5])
INTENSITY = np.array([300.0, 250.0, 60.0, 40.0])


def worked(ssd_kg_per_tb: float) -> CacheChoices:
    served = RATE[:, None] * (1 - 0.6 * HIT)
    return cache_choices(
        SIZES,
        800 + 600 * served,
        np.clip(1.25 - 0.25 * served, 0, 1),
        RATE,
        INTENSITY,
        ssd_kg_per_tb=ssd_kg_per_tb,
    )


@pytest.mark.parametrize(
    ("ssd", "share", "grams", "sizes", "attainment"),
    [
        (30, 0.90, 916.997, (16, 16, 8, 0), 0.9382),
        (30, 0.945, 918.157, (16, 16, 16, 0), 0.9491),
        (6, 0.90, 889.351, (16, 16, 16, 8), 0.9491),
        (160, 0.90, 997.939, (8, 8, 4, 0), 0.9109),
        (160, 0.93, 1017.295, (8, 16, 8, 0), 0.9382),
        (160, 0.94, 1042.199, (8, 16, 16, 0), 0.9491),
    ],
)
@pytest.mark.parametrize("method", ["auto", "milp"])
def test_worked_instance(
    ssd: float, share: float, grams: float, sizes: tuple[int, ...], attainment: float, method: str
) -> None:
    found = schedule_cache(worked(ssd), share, method=method)  # type: ignore[arg-type]
    assert found.carbon_g == pytest.approx(grams, abs=6e-4)
    assert tuple(found.sizes_tb) == sizes
    assert found.attainment == pytest.approx(attainment, abs=6e-5)
    assert found.bound_g <= found.carbon_g + 1e-6


def test_cost_matrix_of_the_worked_instance() -> None:
    expected = [
        (420, 384.94, 371.48, 366.16),
        (500, 439.74, 415.48, 402.96),
        (120, 107.62, 103.88, 105.04),
        (44, 44.22, 45.88, 50.64),
    ]
    assert worked(30).carbon_g == pytest.approx(np.array(expected), abs=6e-3)


@st.composite
def choices(draw: st.DrawFn) -> CacheChoices:
    intervals, sizes = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    number = st.integers(0, 40)
    table = st.lists(number, min_size=intervals * sizes, max_size=intervals * sizes)
    shape = (intervals, sizes)
    return CacheChoices(
        np.arange(sizes, dtype=np.float64),
        np.array(draw(table), np.float64).reshape(shape),
        np.array(draw(st.lists(st.integers(1, 5), min_size=intervals, max_size=intervals)), float),
        np.array(draw(table), np.float64).reshape(shape) / 40,
    )


@given(choices=choices(), share=st.integers(0, 40), change=st.sampled_from([0.0, 0.0, 3.0]))
@settings(max_examples=150, deadline=None)
def test_optimum_is_that_of_enumeration(choices: CacheChoices, share: int, change: float) -> None:
    weight = choices.requests / choices.requests.sum()
    best, most = np.inf, 0.0
    for size in product(range(len(choices.sizes_tb)), repeat=len(weight)):
        index = np.array(size)
        rows = np.arange(len(size))
        reached = float(weight @ choices.attainment[rows, index])
        most = max(most, reached)
        if reached >= share / 40 - 1e-12:
            moved = change * np.abs(np.diff(choices.sizes_tb[index])).sum()
            best = min(best, choices.carbon_g[rows, index].sum() + moved)
    if np.isinf(best):
        with pytest.raises(InfeasibleError, match="lower the attainment"):
            schedule_cache(choices, share / 40, change_g_per_tb=change)
        return
    for method in ("auto", "milp", "price"):
        found = schedule_cache(choices, share / 40, change_g_per_tb=change, method=method)  # type: ignore[arg-type]
        assert found.bound_g <= best + 1e-6
        assert found.attainment >= share / 40 - 1e-9
        if method == "price":
            assert found.carbon_g >= best - 1e-9
        else:
            assert found.carbon_g == pytest.approx(best, abs=1e-6)


def test_limits() -> None:
    free = cache_choices(
        SIZES, 800 - 10 * SIZES * np.ones((4, 1)), np.ones((4, 4)), RATE, INTENSITY, ssd_kg_per_tb=0
    )
    assert (schedule_cache(free).sizes_tb == 16).all()
    clean = cache_choices(
        SIZES, 800 - 10 * SIZES * np.ones((4, 1)), np.ones((4, 4)), RATE, np.zeros(4)
    )
    assert (schedule_cache(clean).sizes_tb == 0).all()


def test_each_interval_alone_is_no_cheaper_than_all_together() -> None:
    alone = schedule_cache(worked(160), 0.8, each_interval=True)
    together = schedule_cache(worked(160), 0.8)
    assert alone.carbon_g >= together.carbon_g - 1e-9
    with pytest.raises(InfeasibleError, match="interval 1"):
        schedule_cache(worked(160), 0.95, each_interval=True)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="attainment"):
        schedule_cache(worked(30), 1.5)
    with pytest.raises(InputError, match="carbon_g"):
        CacheChoices(SIZES, np.zeros((2, 4)), RATE, np.zeros((4, 4)))
    with pytest.raises(InputError, match="finite"):
        CacheChoices(SIZES, np.full((4, 4), np.nan), RATE, np.zeros((4, 4)))


@given(
    seed=st.integers(0, 2**20),
    growth=st.sampled_from([0.5, 1.0, 3.0, 9.0]),
    change=st.sampled_from([0.0, 2.0]),
    each=st.booleans(),
    start=st.sampled_from([None, 0.0, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_growth_limit_against_enumeration(
    seed: int, growth: float, change: float, each: bool, start: float | None
) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.array([0.0, 1.0, 3.0, 9.0])
    attainment = np.sort(rng.random((4, 4)) * 0.3 + 0.7, axis=1)
    choices = CacheChoices(sizes, rng.random((4, 4)) * 30, rng.random(4) + 0.1, attainment)
    share = choices.requests / choices.requests.sum()

    def may(before: float, after: float) -> bool:
        above = sizes[sizes > before]
        step = above[0] - before if len(above) else 0.0
        return bool(after - before <= max(growth, step) + 1e-9)

    best = np.inf
    for path in product(range(4), repeat=4):
        held = sizes[list(path)]
        reached = attainment[np.arange(4), list(path)]
        steps = list(pairwise(held))
        if start is not None:
            steps = [(start, held[0]), *steps]
        good = (reached >= 0.85).all() if each else (share * reached).sum() >= 0.85
        if good and all(may(a, b) for a, b in steps):
            paid = change * sum(abs(b - a) for a, b in steps)
            best = min(best, choices.carbon_g[np.arange(4), list(path)].sum() + paid)
    asked = {"each_interval": each, "change_g_per_tb": change, "start_tb": start}
    if np.isinf(best):
        with pytest.raises(InfeasibleError):
            schedule_cache(choices, 0.85, growth_tb=growth, **asked)  # type: ignore[arg-type]
        return
    for method in ("auto", "milp"):
        found = schedule_cache(choices, 0.85, growth_tb=growth, method=method, **asked)  # type: ignore[arg-type]
        assert found.carbon_g == pytest.approx(best, abs=1e-6)


def test_wear_shortens_the_life_of_flash() -> None:
    tables = np.ones((1, 3)), np.ones((1, 3)), [1.0], [0.0]
    written = np.array([[0.0, 2.0, 2.0]])
    found = cache_choices(
        [0.0, 1.0, 100.0], *tables, ssd_kg_per_tb=30, written_tb_per_hour=written, endurance=1825
    ).carbon_g[0]
    assert found[0] == 0.0
    assert found[1] == pytest.approx(30_000 * 2 / 1825)  # 912 hours until it is worn out
    assert found[2] == pytest.approx(30_000 * 100 / 43_800)  # old before it is worn out
