"""Parts of the rerun of WAIT's experiments; the whole takes a minute."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpusched.reproduce import wait
from gpusched.reproduce.claim import Setting


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(wait, "REPLICATIONS", 2)
    with ThreadPoolExecutor(1) as executor:
        yield wait.Bench(Setting(seed=3), executor)


def test_bisection_finds_the_last_step_that_holds():
    for limit in (1.0, 1.3, 2.74, 3.0):
        found = wait.bisect(lambda x, limit=limit: x <= limit + 1e-9, 1.0, 3.0, 0.25)
        assert found == pytest.approx(1.0 + 0.25 * np.floor((limit - 1.0) / 0.25 + 1e-9))


def test_generated_chat_lengths_have_the_printed_moments():
    (prompt, output), origin = wait.chat_lengths(Setting(seed=1))
    assert "generated" in origin
    assert max(prompt.max(), output.max()) < 500
    assert prompt.mean() == pytest.approx(58.6, rel=0.05)
    assert np.median(prompt) == pytest.approx(21, abs=1.5)
    assert output.mean() == pytest.approx(147.3, rel=0.03)
    assert np.median(output) == pytest.approx(116, rel=0.05)
    assert (output <= 50).mean() == pytest.approx(0.31, abs=0.02)
    assert (output > 300).mean() == pytest.approx(0.14, abs=0.02)


def test_public_chat_lengths_are_like_the_printed_ones(shared):
    (prompt, output), origin = wait.chat_lengths(Setting(traces=shared / "traces"))
    assert "apex_lengths" in origin
    assert prompt.mean() == pytest.approx(58.6, rel=0.2)
    assert output.mean() == pytest.approx(147.3, rel=0.1)


def test_the_worked_example_over_short_horizons(bench, monkeypatch):
    monkeypatch.setattr(wait, "TOY_HORIZONS_S", (200, 2000))
    claims, chart = wait.guarantees(bench)
    lost, _, _, bounded = claims
    assert lost.holds
    assert bounded.holds
    assert chart.count("polyline") == 4


def test_runs_are_the_same_under_a_seed(bench):
    first, again = (bench.measure([wait.SARATHI, wait.WAIT], wait.LONG, 2.4, 200) for _ in range(2))
    assert first == again
    assert all(figures.latency_s > 20 for figures in first)


def test_a_rate_beyond_the_fluid_bound_is_not_stable(bench):
    found = bench.stable_rate(wait.WAIT, wait.SHORT, 20.0, 40.0, 3000, resolution=2.0)
    assert 26.0 <= found <= 32.0


def test_the_affine_fit_holds():
    assert wait.linear_iterations().holds
