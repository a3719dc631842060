from dataclasses import replace

import numpy as np
import pytest

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.sim.cascade import simulate_cascade
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.iteration import timing_model
from gpusched.traces.generate import generate


@pytest.fixture(scope="module")
def fleets() -> list[Fleet]:
    made = []
    for model, replicas in (("llama-3.1-8b", 1), ("llama-3.1-70b", 2)):
        timing = timing_model(load_model(model), load_gpu("h100_sxm"), Parallelism(tp=4))
        pool = Pool(
            name="mixed", timing=timing.compile(8192, 1024), kv_blocks=20_000, replicas=replicas
        )
        made.append(Fleet((pool,)))
    return made


def test_stages_follow_one_another(fleets: list[Fleet]) -> None:
    trace = generate("chat", 4.0, 60.0, seed=0)
    scores = np.random.default_rng(0).uniform(0, 100, (len(trace), 2))
    found = simulate_cascade(fleets, trace, scores, [60.0], judge_s=0.25)
    passed = scores[:, 0] < 60
    assert (found.accepted == passed).all()
    alone = simulate(fleets[0], trace)
    assert found.finish_s[~passed] == pytest.approx(alone.finish_s[~passed])
    second = found.stages[1]
    assert second.arrival_s == pytest.approx(np.sort(alone.finish_s[passed] + 0.25))
    assert (found.first_token_s[passed] >= alone.finish_s[passed] + 0.25).all()
    expected = np.where(passed, scores[:, 1], scores[:, 0]).mean()
    assert found.quality == pytest.approx(expected)
    assert found.rows[1].size == passed.sum()


def test_thresholds_at_the_ends_are_single_models(fleets: list[Fleet]) -> None:
    trace = generate("chat", 4.0, 30.0, seed=1)
    scores = np.full((len(trace), 2), 50.0)
    small = simulate_cascade(fleets, trace, scores, [0.0])
    assert len(small.stages) == 1
    assert small.finish_s == pytest.approx(simulate(fleets[0], trace).finish_s)
    large = simulate_cascade(fleets[1:], trace, scores[:, 1:], [])
    assert large.finish_s == pytest.approx(simulate(fleets[1], trace).finish_s)


def test_sessions_that_wait_for_answers_are_refused(fleets: list[Fleet]) -> None:
    trace = generate("chat", 4.0, 10.0, seed=1)
    waiting = replace(trace, think_s=np.zeros(len(trace)))
    with pytest.raises(InputError, match="sessions wait"):
        simulate_cascade(fleets, waiting, np.zeros((len(trace), 2)), [0.0])
