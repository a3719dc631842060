"""Cache sizes over time: days, demand, tables, rolling schedules and the whole answer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpusched.domain.spec import spec_from
from gpusched.errors import InfeasibleError, InputError
from gpusched.planning.cache_size.answer import answer_document, in_chunks, plan_cache
from gpusched.planning.cache_size.days import HOUR_S, days_of, unrolled
from gpusched.planning.cache_size.demand import demand_of, load_shape
from gpusched.planning.cache_size.rolling import Demand, grams, guarded, roll
from gpusched.planning.cache_size.server import (
    Hours,
    gpu_power_w,
    saved_s,
    server_of,
    with_cache,
)
from gpusched.planning.cache_size.tables import Tables
from gpusched.traces.generate import generate
from gpusched.traces.reuse import hit_curve

SPEC = {
    "model": "llama-3.1-8b",
    "cluster": {"nodes": [{"gpu": "h100_sxm", "gpus": 1, "region": "france"}], "pue": 1.0},
    "workload": {"profile": "documents", "rate_rps": 0.3, "duration_s": 7200},
    "slo": {"ttft_s": 5, "attainment": 0.9},
    "objective": "carbon",
    "cache": {"sizes_tb": [0, 1, 2, 4], "host_w": 0, "growth_limit": False},
}


def spec(**cache):
    return spec_from({**SPEC, "cache": {**SPEC["cache"], **cache}})


def tables(sizes=(0.0, 1.0, 2.0, 4.0)):
    """Power falls with size, more where the load is high; attainment rises."""
    held = np.array(sizes)
    loads = np.array([0.1, 1.0])
    hit = 0.6 * (1 - np.exp(-held))
    work = loads[:, None] * (1 - hit)
    return Tables(loads, held, 200 + 400 * work, 1 - 0.1 * work, hit, np.full(len(held), 5e-4))


def demand(g_per_kwh, load=0.5, history=24):
    values = np.asarray(g_per_kwh, np.float64)
    return Demand(np.full(len(values), load), values, history)


def test_days_follow_the_load_and_repeat_with_fresh_content():
    content = in_chunks(generate("documents", 0.2, 3600.0, seed=1))
    load = np.array([0.1, 0.4, 0.2])
    days = days_of(content, load)
    hour = (days.arrival_s / HOUR_S).astype(int)
    assert np.bincount(hour, minlength=3) == pytest.approx(load * HOUR_S, abs=80)
    assert (np.diff(days.arrival_s) >= 0).all()
    n = len(content)
    assert len(days) > 2 * n
    assert (days.prompt_tokens[:n] == content.prompt_tokens).all()
    assert (days.prompt_tokens[n : 2 * n] == content.prompt_tokens).all()
    first, second = (
        set(days.prefix.block_ids[days.prefix.offsets[a] : days.prefix.offsets[b]])
        for a, b in ((0, n), (n, 2 * n))
    )
    assert not first & second
    own = hit_curve(content).hit_ratio[-1]
    assert hit_curve(days.take(np.arange(2 * n))).hit_ratio[-1] == pytest.approx(own)


def test_rounds_unroll_by_answers_and_think_times():
    sessions = generate("assistant", 0.5, 4000.0, seed=2)
    flat = unrolled(sessions, token_s=0.1)
    assert flat.think_s is None
    assert len(flat) == len(sessions)
    assert (np.diff(flat.arrival_s) >= 0).all()
    longest = int(np.bincount(sessions.session_id).argmax())
    was = np.flatnonzero(sessions.session_id == longest)
    now = np.flatnonzero(flat.session_id == longest)
    was, now = was[np.argsort(sessions.round[was])], now[np.argsort(flat.round[now])]
    gaps = sessions.think_s[was][1:] + 0.1 * sessions.output_tokens[was][:-1]
    assert np.diff(flat.arrival_s[now]) == pytest.approx(gaps)


@given(factor=st.integers(1, 5), seed=st.integers(0, 100))
@settings(max_examples=10)
def test_coarse_blocks_hit_no_more_than_fine_ones(factor, seed):
    fine = generate("documents", 0.5, 300.0, seed=seed)
    coarse = replace(fine, prefix=fine.prefix.coarse(factor))
    assert coarse.prefix.block_tokens == factor * fine.prefix.block_tokens
    ratios = [curve.hit_ratio[-1] if len(curve.hit_ratio) else 0.0
              for curve in (hit_curve(coarse), hit_curve(fine))]  # fmt: skip
    assert ratios[0] <= ratios[1] + 1e-12
    if factor == 1:
        assert (coarse.prefix.block_ids == fine.prefix.block_ids).all()


def test_tables_are_linear_between_loads():
    found = tables()
    power, share, written = found.at(np.array([0.55, 5.0]))
    assert power[0] == pytest.approx(found.power_w.mean(axis=0))
    assert power[1] == pytest.approx(found.power_w[1])
    assert share[0] == pytest.approx(found.attainment.mean(axis=0))
    assert written[0] == pytest.approx(0.55 * 3600 * 5e-4)


def test_power_by_busy_time():
    server = server_of(spec())
    gpu = server.gpu
    assert gpu_power_w(server, np.zeros(2), 10.0) == pytest.approx(gpu.idle_w)
    all_prefill = gpu.idle_w + 0.95 * (gpu.tdp_w - gpu.idle_w)
    assert gpu_power_w(server, np.array([10.0, 10.0]), 10.0) == pytest.approx(all_prefill)


def test_clean_hours_hold_less_and_free_flash_holds_most():
    server = server_of(spec())
    wave = np.tile(np.r_[np.full(12, 400.0), np.full(12, 5.0)], 3)
    sizes = roll(server, tables(), demand(wave)).sizes_tb
    dirty, clean = sizes[:12], sizes[12:24]
    assert dirty.min() > clean.max()
    free = with_cache(server, ssd=server.cache.ssd.model_copy(update={"kg_per_tb": 0.0}))
    assert (roll(free, tables(), demand(wave)).sizes_tb == 4.0).all()
    assert (roll(server, tables(), demand(np.zeros(48))).sizes_tb == 0.0).all()


@given(seed=st.integers(0, 1000), hour=st.integers(1, 20))
@settings(max_examples=10)
def test_no_decision_looks_ahead(seed, hour):
    rng = np.random.default_rng(seed)
    server = server_of(spec(growth_limit=True, change_g_per_tb=1.0))
    now = Demand(rng.random(48) + 0.1, 400 * rng.random(48), 24)
    other = Demand(now.requests_per_s.copy(), now.g_per_kwh.copy(), 24)
    other.requests_per_s[24 + hour :] = 0.2
    other.g_per_kwh[24 + hour :] = 999.0
    ours, theirs = (roll(server, tables(), d, start_tb=1.0).sizes_tb for d in (now, other))
    assert (ours[: hour + 1] == theirs[: hour + 1]).all()


def test_growth_is_no_faster_than_prompts_fill():
    server = server_of(spec(growth_limit=True))
    wave = np.r_[np.full(48, 600.0)]
    sizes = roll(server, tables(), demand(wave, load=0.1), start_tb=0.0).sizes_tb
    assert list(sizes[:3]) == [1.0, 2.0, 4.0]  # 0.18 TB an hour: one size at a time


def test_the_guard_acts_after_a_missed_hour():
    server = server_of(spec())

    def serve(sizes_tb):
        met = np.where(sizes_tb >= 1.0, 1.0, 0.5)
        met[3] = 0.0
        n = len(sizes_tb)
        return Hours(sizes_tb, np.ones(n), np.full(n, 500.0), met, 0.0, 0.0, 0.0)

    clean = demand(np.zeros(72), history=24)
    assert (roll(server, tables(), clean).sizes_tb == 0.0).all()
    rolled, hours, missed = guarded(server, tables(), clean, serve)
    # a day at the next larger size, then another try, as nothing missed in the meantime but hour 3
    assert missed == (0, 3, 28)
    assert list(rolled.sizes_tb[:5]) == [0.0, 1.0, 1.0, 1.0, 2.0]
    assert (rolled.sizes_tb[4:28] == 2.0).all()
    assert rolled.sizes_tb[28] == 0.0
    assert (rolled.sizes_tb[29:] == 1.0).all()
    assert rolled.forecast_rps[4] == pytest.approx(1.1 * rolled.forecast_rps[3])
    assert set(missed) == set(np.flatnonzero(hours.attainment < 0.9))


def test_infeasible_attainment_names_the_nearest():
    server = server_of(spec_from({**SPEC, "slo": {"ttft_s": 5, "attainment": 0.999}}))
    with pytest.raises(InfeasibleError, match=r"lower the attainment to 0\.\d+ or add GPUs"):
        roll(server, tables(), demand(np.full(48, 50.0)))


def test_grams_of_known_hours():
    server = server_of(spec())
    hours = Hours(np.array([2.0, 4.0]), np.array([500.0, 100.0]), np.ones(2), np.ones(2), 0, 0, 0)
    operational, flash, other = grams(server, hours, np.array([100.0, 10.0]), ssd_kg_per_tb=43.8)
    assert operational == pytest.approx(50.0 + 1.0)
    assert flash == pytest.approx(6.0)
    assert other == pytest.approx(2 * server.other_g_per_hour)


def test_saved_seconds_are_the_prefills_left_out():
    server = server_of(spec())
    stored = np.array([0, 1000, 1000, 4000], np.int32)
    expected = 2 * server.timing.prefill_s(1000) + server.timing.prefill_s(4000)
    assert saved_s(server, stored) == pytest.approx(expected)


def test_short_and_gappy_histories_are_told(tmp_path):
    carbon = tmp_path / "carbon.csv"
    rows = [f"{h},{'' if h == 30 else 100 + h % 24}" for h in range(40)]
    carbon.write_text("hour,g_per_kwh\n" + "\n".join(rows) + "\n")
    found = demand_of(spec(carbon=str(carbon)), 0.3)
    assert (found.history, found.hours) == (16, 24)
    assert found.g_per_kwh[30] == 106.0
    notes = " ".join(found.notes)
    assert "1 missing hours" in notes
    assert "only 16 hours; the forecast repeats them" in notes
    carbon.write_text("hour,g_per_kwh\n" + "\n".join(f"{h},50" for h in range(20)) + "\n")
    with pytest.raises(InputError, match="20 hours of load and carbon intensity leave no history"):
        demand_of(spec(carbon=str(carbon)), 0.3)
    carbon.write_text("hour,grams\n1,2\n")
    with pytest.raises(InputError, match="has no column g_per_kwh; columns are hour, grams"):
        demand_of(spec(carbon=str(carbon)), 0.3)
    with pytest.raises(InputError, match="cannot read"):
        demand_of(spec(carbon=str(tmp_path / "none.csv")), 0.3)
    with pytest.raises(InputError, match="unknown zone 'FRA'"):
        demand_of(spec(carbon="FRA"), 0.3)


@pytest.mark.parametrize("shape", ["flat", "diurnal", "weekly"])
def test_made_up_loads_keep_their_mean(shape):
    load = load_shape(shape, 3.0, 4 * 168, 0)
    assert load.mean() == pytest.approx(3.0, rel=0.02)
    assert (load > 0).all()
    if shape != "flat":
        by_hour = load[: 5 * 24].reshape(5, 24).mean(axis=0)
        assert by_hour.max() > 2 * by_hour.min()


def test_bad_sections_say_what_would_be_right():
    for cache, words in (
        ({"sizes_tb": [2, 1]}, "must ascend"),
        ({"load": "daily"}, "must be flat, diurnal, weekly"),
        ({"ssd": {"kg": 3}}, "unknown key"),
        ({"month": 13}, "month"),
    ):
        with pytest.raises(InputError, match=words):
            spec(**cache)
    nothing = spec_from({k: v for k, v in SPEC.items() if k != "cache"})
    with pytest.raises(InputError, match="cache: is missing"):
        server_of(nothing)
    with pytest.raises(InputError, match="no shared prefixes"):
        plan_cache(spec_from({**SPEC, "workload": {"profile": "chat", "rate_rps": 1}}))


def test_whole_answer():
    found = plan_cache(spec(carbon="ES"), seed=1)
    document = answer_document(found)
    assert len(document["hours"]) == 24
    assert [row["ssd_kg_per_tb"] for row in document["sensitivity"]] == [6.0, 30.0, 160.0]
    assert all(size in (0, 1, 2, 4) for size in found.adaptive.hours.size_tb)
    none, full = found.rivals[0], found.rivals[-1]
    assert none.hours.hit_ratio == 0.0
    assert full.hours.hit_ratio > 0.3
    assert full.operational_g < none.operational_g
    assert none.ssd_g == 0.0
    assert any("reuse distances of documents" in text for text in found.assumptions)
    held = [row.adaptive.hours.size_tb.mean() for row in found.sensitivity]
    assert held[0] >= held[1] >= held[2]
    grid = found.demand.g_per_kwh[found.demand.history :]
    expected = (found.adaptive.hours.power_w / 1e3 * grid).sum()
    assert found.adaptive.operational_g == pytest.approx(expected)
    assert plan_cache(spec(carbon="ES"), seed=1).adaptive.total_g == found.adaptive.total_g
