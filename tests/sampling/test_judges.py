"""Judges over a real server on 127.0.0.1."""

import asyncio
import math

import pytest

pytest.importorskip("aiohttp")

from stub import StubModel, serving

from gpusched.errors import InputError
from gpusched.sampling.answers import AnswerFormat
from gpusched.sampling.judges import (
    ByAgreement,
    ByLogProbability,
    ByProbe,
    ByReward,
    score_models,
    write_scores,
)
from gpusched.sampling.probe import HELPFUL, Probe
from gpusched.traces.scores import read_scores

REQUESTS = ["one", "two", "three"]


def table(models, judge, names=("small", "large")):
    async def go():
        async with serving(models) as stub:
            endpoints = [stub.endpoint(name) for name in names]
            try:
                return await score_models(REQUESTS, endpoints, judge(stub))
            finally:
                for endpoint in endpoints:
                    await endpoint.__aexit__(None, None, None)

    return asyncio.run(go())


def test_certainty_is_the_geometric_mean_of_probabilities():
    models = {
        "small": StubModel({"a": 1.0}, token_logprobs={"a": [math.log(0.5), math.log(0.125)]}),
        "large": StubModel({"b": 1.0}, token_logprobs={"b": [0.0]}),
    }
    found = table(models, lambda stub: ByLogProbability())
    assert found == [pytest.approx([25.0, 100.0])] * 3


def test_agreement_is_the_share_of_equal_answers():
    models = {"small": StubModel({"7": 1.0}), "large": StubModel({"7": 0.5, "8": 0.5}, seed=3)}
    judge = ByAgreement(30, AnswerFormat(kind="number"))
    for small, large in table(models, lambda stub: judge):
        assert small == 100.0
        assert 15 < large < 85


def test_a_failing_model_leaves_gaps_and_the_rest_is_written(tmp_path):
    def yes(prompt):
        return [
            {"token": "yes", "logprob": math.log(0.8)},
            {"token": "no", "logprob": math.log(0.2)},
        ]

    models = {
        "small": StubModel({"a": 1.0}, fail=lambda call: call == 0),
        "large": StubModel({"b": 1.0}),
        "judge": StubModel({"yes": 1.0}, logprobs=yes),
    }
    found = table(models, lambda stub: ByProbe(Probe(stub.endpoint("judge"), HELPFUL)))
    assert sum(row[0] is None for row in found) == 1
    assert [row[1] for row in found] == pytest.approx([80.0] * 3)
    path = tmp_path / "scores.csv"
    assert write_scores(path, ["llama-3.1-8b", "llama-3.1-70b"], found) == 1
    assert read_scores(path, ["llama-3.1-70b"]).values.tolist() == [[80.0], [80.0]]


def test_an_address_that_gives_no_reward_scores_nothing():
    models = {"small": StubModel({"a": 1.0}), "large": StubModel({"b": 1.0})}
    found = table(models, lambda stub: ByReward(stub.url + "/nothing-here"))
    assert found == [[None, None]] * 3


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="samples"):
        ByAgreement(0)
    with pytest.raises(InputError, match="0 of 1 rows are whole"):
        write_scores(tmp_path / "s.csv", ["a"], [[None]])
    with pytest.raises(InputError, match="at least one request"):
        asyncio.run(score_models([], [], ByLogProbability()))
