"""The rerun of staggered batch scheduling, shortened."""

import numpy as np
import pytest

from gpusched.planning.packing import longest_first_ratio
from gpusched.reproduce import sbs, sbs_fleet
from gpusched.reproduce.claim import Setting


def test_highest_load_is_the_first_crossing():
    n = len(sbs.LOADS)
    assert sbs.highest_load(np.full(n, 1.0), 2.0) == sbs.LOADS[-1]
    assert sbs.highest_load(np.full(n, 3.0), 2.0) == sbs.LOADS[0]
    ttft_s = np.where(np.arange(n) < 5, 1.0, 3.0)
    ttft_s[8:] = 1.0
    assert sbs.highest_load(ttft_s, 2.0) == pytest.approx((sbs.LOADS[4] + sbs.LOADS[5]) / 2)


def test_engines_are_timed_by_the_timing_model():
    engines = sbs.prefill_engines(2048)
    model = sbs.timing(sbs.UNITS)
    assert sbs.full_pass_s(engines) == pytest.approx(model.prefill_s(2048))
    middle_s = engines.fixed_s + engines.token_s * 1024
    assert middle_s == pytest.approx(model.prefill_s(1024), rel=0.05)


def test_trials_repeat_under_their_seed_and_common_draws():
    trial = sbs.Trial((3, 5), "chat", 2048, (0.5, 0.7), ("least-tokens", "staggered"))
    found = sbs.run_trial(trial)
    assert (found == sbs.run_trial(trial)).all()
    assert (found[:, 1, 1] < found[:, 0, 1]).all(), "staggering waits less"
    other = sbs.run_trial(
        sbs.Trial((3, 6), "chat", 2048, (0.5, 0.7), ("least-tokens", "staggered"))
    )
    assert (found != other).all()


def test_packing_is_within_its_bound():
    plain, cached = sbs.packing_excess((0, 1))
    assert 0.0 <= plain <= longest_first_ratio(sbs.UNITS) - 1
    assert cached >= 0.0


def test_the_whole_experiment(monkeypatch):
    for name, value in (("TRIALS", 10), ("WINDOWS", 2), ("DECODES", 6000), ("SEEDS", 1)):
        monkeypatch.setattr(sbs, name, value)
    monkeypatch.setattr(sbs_fleet, "SEEDS", 1)
    told = []
    result = sbs.run(Setting(jobs=1, progress=told.append))
    assert {"prefill trials: 10 of 10", "decode runs: 20 of 20"} <= set(told)
    assert len(result.claims) == len({claim.claim for claim in result.claims})
    assert all(claim.differences for claim in result.claims)
    assert sum(claim.holds is None for claim in result.claims) == 1
    waits = [claim for claim in result.claims if claim.claim.startswith("mean wait")]
    assert [claim.holds for claim in waits] == [True, True]
    assert all("<svg" in chart for chart in result.charts.values())
