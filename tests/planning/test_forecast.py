import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.planning.forecast.band import backtest, best_model, fill_gaps, quantile_band
from gpusched.planning.forecast.models import Harmonics, forecaster, harmonic, last_season

HOURS = np.arange(6 * 7 * 24)
SMOOTH = 100 + 30 * np.sin(2 * np.pi * HOURS / 24) + 10 * np.cos(2 * np.pi * HOURS / 168)


def test_last_season_repeats_itself() -> None:
    assert last_season(3)(np.array([1.0, 2, 3, 4, 5, 6]), 5).tolist() == [4, 5, 6, 4, 5]
    assert last_season(9)(np.array([1.0, 2]), 3).tolist() == [1, 2, 1]


def test_harmonics_continue_what_they_are_made_of() -> None:
    model = harmonic((Harmonics(24, 2), Harmonics(168, 2)))
    assert model(SMOOTH[:-48], 48) == pytest.approx(SMOOTH[-48:], rel=1e-3)


@given(cut=st.integers(200, 900))
@settings(max_examples=20, deadline=None)
def test_no_model_looks_ahead(cut: int) -> None:
    changed = SMOOTH.copy()
    changed[cut:] = 1e6
    for name in ("last-day", "last-week", "harmonic"):
        model = forecaster(name, 24)
        assert np.array_equal(model(SMOOTH[:cut], 24), model(changed[:cut], 24))
        past = backtest(SMOOTH, model, 24, first=cut, every=24)
        assert np.array_equal(past.forecast[0], np.maximum(model(SMOOTH[:cut], 24), 0))


def test_band_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    noisy = SMOOTH * rng.lognormal(0, 0.15, len(SMOOTH))
    model = forecaster("harmonic", 24)
    past = backtest(noisy[:-240], model, 6, first=336, every=6)
    covered = []
    for at in range(len(noisy) - 240, len(noisy) - 6):
        band = quantile_band(past, model(noisy[:at], 6), 0.9)
        covered.append(noisy[at : at + 6] <= band)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.05)


def test_the_model_with_least_error_is_chosen() -> None:
    rng = np.random.default_rng(1)
    noisy = SMOOTH * rng.lognormal(0, 0.1, len(SMOOTH))
    models = {name: forecaster(name, 24) for name in ("last-day", "last-week", "harmonic")}
    best, errors = best_model(noisy, models, 24, first=500, every=24)
    assert best == "harmonic"
    assert errors["harmonic"] < errors["last-day"]


def test_gaps_are_filled_from_the_season_and_counted() -> None:
    series = SMOOTH.copy()
    series[100:110] = np.nan
    filled, gaps = fill_gaps(series, 24)
    assert gaps == 10
    assert filled[100:110] == pytest.approx(SMOOTH[76:86])


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="too few"):
        backtest(SMOOTH[:10], forecaster("last-day", 24), 24, first=5)
    with pytest.raises(InputError, match="value 3"):
        backtest(np.where(np.arange(50) == 3, np.nan, 1.0), forecaster("last-day", 24), 2, first=9)
    with pytest.raises(InputError, match="did you mean harmonic"):
        forecaster("harmonics", 24)


def test_arima_follows_a_daily_series_of_any_step_and_does_not_look_ahead() -> None:
    pytest.importorskip("statsforecast")
    rng = np.random.default_rng(2)
    quarters = np.repeat(SMOOTH[: 8 * 24], 4) * rng.lognormal(0, 0.02, 8 * 96)
    for steps, series in ((24, SMOOTH[: 8 * 24]), (96, quarters)):
        model = forecaster("arima", steps)
        cut = 7 * steps + steps // 3
        found = model(series[:cut], steps // 4)
        assert found == pytest.approx(series[cut : cut + steps // 4], rel=0.12)
        changed = np.concatenate((series[:cut], np.full(len(series) - cut, 1e6)))
        assert np.array_equal(found, forecaster("arima", steps)(changed[:cut], steps // 4))
