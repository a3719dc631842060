import time

import numpy as np
import pytest
from engines_made_up import made_up
from virtual_engine import VirtualEngine

from gpusched.calibration import calibrate as module
from gpusched.calibration.calibrate import Calibrated, Experiment, Settings, calibrate, check_fit
from gpusched.calibration.facts import Facts
from gpusched.calibration.fit import OTHERS, Fit, Tables, fit, hats
from gpusched.calibration.limits import at_once, burst, token_budget
from gpusched.calibration.rows import rows_of
from gpusched.calibration.stage import Answer, Record, Stage
from gpusched.calibration.validate import Lengths, capacity_rps, predict, trace_of
from gpusched.errors import InputError

FACTS = Facts("m", "vllm", "1.0", 2048, 131_072, 16)


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch):
    """Calibrate a computed engine on its own clock."""

    def run(settings: Settings, **noise: float) -> tuple[Calibrated, VirtualEngine]:
        engine = VirtualEngine(made_up(), **noise)

        class Clock:
            monotonic = staticmethod(lambda: engine.now_s)
            strftime, gmtime = time.strftime, time.gmtime

        monkeypatch.setattr(module, "time", Clock)
        return calibrate(engine, FACTS, settings), engine

    return run


def test_exact_engine_is_recovered(virtual) -> None:
    found, engine = virtual(Settings(seconds=40))
    truth, m = engine.truth, found.measured
    assert (m.max_num_seqs, m.max_num_batched_tokens) == (16, 1024)
    batch = np.arange(1, 17, dtype=np.float64)
    np.testing.assert_allclose(m.decodes_s(batch), truth.decodes_s(batch), rtol=0.01)
    tokens = np.array([9, 65, 257, 1024], np.float64)
    np.testing.assert_allclose(m.batch_s(tokens), truth.batch_s(tokens), rtol=0.03)
    assert m.iteration.context_s == pytest.approx(1e-6, rel=0.02)
    overhead = truth.request
    assert m.request.entry_s == pytest.approx(overhead.entry_s + overhead.exit_s, rel=0.03)
    assert found.seconds <= 45
    assert m.error.relative < 0.02


def test_noise_and_outliers_shift_little(virtual) -> None:
    found, engine = virtual(Settings(seconds=60, seed=3), noise=0.08, outliers=0.01, seed=4)
    truth, m = engine.truth, found.measured
    disturbed = 1 + 0.01 * 4  # the mean iteration, outliers included
    batch = np.arange(1, 17, dtype=np.float64)
    errors = m.decodes_s(batch) / (disturbed * truth.decodes_s(batch)) - 1
    assert np.abs(errors).max() < 0.08
    assert np.abs(errors.mean()) < 0.03
    tokens = np.array([9, 33, 129, 257], np.float64)
    np.testing.assert_allclose(m.batch_s(tokens), disturbed * truth.batch_s(tokens), rtol=0.12)
    assert m.error.stretch > 1.0
    assert m.iteration.context_s == pytest.approx(1e-6, rel=0.35)


def test_confidence_covers_the_truth_and_shrinks_with_time(virtual) -> None:
    short, engine = virtual(Settings(seconds=20, seed=1), noise=0.05, seed=2)
    long, _ = virtual(Settings(seconds=120, seed=1), noise=0.05, seed=2)
    half = [np.array(found.measured.half_width["decode_s"]) for found in (short, long)]
    assert half[1].mean() < half[0].mean()
    m = long.measured
    truth_s = engine.truth.decodes_s(np.array(m.iteration.decode_batch, np.float64))
    apart = np.abs(np.array(m.iteration.decode_s) / m.error.stretch - truth_s)
    assert (apart <= 2.5 * half[1]).mean() >= 0.8


def test_calibrated_engine_predicts_the_true_one(virtual) -> None:
    found, engine = virtual(Settings(seconds=60), noise=0.03)
    lengths = Lengths(128, 24, 0.8, 900, 128)
    rate_rps = 0.8 * capacity_rps(engine.truth, lengths)
    rng = np.random.default_rng(5)
    prompt, output = lengths.draw(500, rng)
    trace = trace_of(np.cumsum(rng.exponential(1 / rate_rps, 500)), prompt, output)
    theirs, ours = predict(engine.truth, trace), predict(found.measured, trace)
    for quantile, bound in ((0.5, 0.08), (0.9, 0.15)):
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            a, b = (float(np.quantile(getattr(r, name), quantile)) for r in (theirs, ours))
            assert b == pytest.approx(a, rel=bound), (name, quantile)


def test_limits_that_are_told_are_not_looked_for(virtual) -> None:
    found, engine = virtual(Settings(seconds=15, max_num_seqs=16, max_num_batched_tokens=1024))
    assert not any(stage.together for stage in engine.stages)
    assert max(stage.batch for stage in engine.stages) == 16
    assert found.measured.max_num_seqs == 16


def test_experiment_in_steps(virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VirtualEngine(made_up())
    monkeypatch.setattr(
        module, "time", type("C", (), {"monotonic": staticmethod(lambda: engine.now_s),
                                       "strftime": time.strftime, "gmtime": time.gmtime})
    )  # fmt: skip
    experiment = Experiment(engine, FACTS)
    experiment.prepare()
    before = len(engine.stages)
    experiment.run(8.0)
    middle = len(engine.stages)
    experiment.run(8.0)
    assert before < middle < len(engine.stages)
    found = experiment.result()
    assert found.measured.iteration.decode_s[0] == pytest.approx(6e-3, rel=0.02)


def test_too_noisy_is_refused(virtual) -> None:
    with pytest.raises(InputError, match="vary by"):
        virtual(Settings(seconds=20), noise=1.0)


def test_too_short_contexts_are_refused() -> None:
    with pytest.raises(InputError, match="too short"):
        Experiment(VirtualEngine(made_up()), Facts("m", "vllm", None, 40))


@pytest.mark.parametrize("budget", [512, 1024, 2048, 4096])
def test_token_budget_is_found(budget: int) -> None:
    engine = VirtualEngine(made_up(max_num_batched_tokens=budget))
    assert token_budget(engine.run(burst(2048))) == budget


def test_unreached_budget_is_not_made_up() -> None:
    engine = VirtualEngine(made_up(max_num_batched_tokens=100_000))
    assert token_budget(engine.run(burst(512))) is None


def test_fit_needs_both_kinds_of_iteration() -> None:
    engine = VirtualEngine(made_up())
    rows = rows_of(engine.run(Stage(2, 16, 200, ())), 0, 1024)
    assert len(rows) >= 8
    with pytest.raises(InputError, match="all of one kind"):
        fit(rows)


def test_hats_interpolate_and_extend() -> None:
    knots = (1, 4, 8)
    values = np.array([1.0, 7.0, 9.0])
    for size, expected in ((1, 1.0), (2, 3.0), (4, 7.0), (6, 8.0), (8, 9.0), (12, 11.0)):
        assert hats((size,), knots) @ values == pytest.approx(expected)
    assert hats((2, 6), knots) @ values == pytest.approx(5.5)


@pytest.mark.parametrize(
    ("decode_s", "tokens_s", "words"),
    [
        ((0.01, 0.0), (0.01, 0.03), "2 sequences takes no time"),
        ((0.01, 0.01), (0.0, 0.01), "8 tokens takes no time"),
    ],
)
def test_times_that_cannot_be_are_refused(decode_s, tokens_s, words) -> None:
    values = np.array((*np.zeros(len(OTHERS)), *decode_s, *tokens_s))
    none = np.zeros((len(values), len(values)))
    with pytest.raises(InputError, match=words):
        check_fit(Fit(Tables((1, 2), (8, 64)), values, none, 0.1, 0.1, 1.0))


def test_answers_that_come_in_one_read_count_as_begun() -> None:
    whole = Answer(16, 8, 0.0, np.array([1.0]), np.array([8]))
    later = Answer(16, 8, 0.0, np.array([2.0, 2.1]), np.array([4, 8]))
    beside = Answer(16, 8, 0.0, np.array([0.5, 1.2]), np.array([4, 8]))
    assert at_once(Record(Stage(3, 16, 8), (whole, later, beside), ())) == 2
