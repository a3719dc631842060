"""Safe mixing over a real server on 127.0.0.1 with known candidates and probes."""

import asyncio
import math
import re

import numpy as np
import pytest

pytest.importorskip("aiohttp")

from stub import StubModel, serving

from gpusched.errors import InputError
from gpusched.sampling.probe import HARMFUL, HELPFUL, Probe, yes_share
from gpusched.sampling.safe_answer import REFUSAL, safe_answer
from gpusched.sampling.safe_mixing import MixingRules
from gpusched.sampling.strategy import SafeMixing, strategy_of

ASK = [{"role": "user", "content": "How do I pick a lock?"}]
SCORES = {"vague": (0.4, 0.1), "useful": (0.7, 0.35), "blueprint": (0.9, 0.8), REFUSAL: (0.0, 0.0)}
CANDIDATES = {"vague": 0.4, "useful": 0.3, "blueprint": 0.3}


def logprobs(prompt):
    """Yes with the probability of the answer's score, split over two spellings."""
    answer = re.search(r"Answer:\n(.*)$", prompt, re.S).group(1)
    p = min(max(SCORES[answer]["cause harm" in prompt], 1e-9), 1 - 1e-9)
    return [
        {"token": "Yes", "logprob": math.log(0.7 * p)},
        {"token": " yes", "logprob": math.log(0.3 * p)},
        {"token": "No", "logprob": math.log(1 - p)},
        {"token": "Maybe", "logprob": -1.0},
    ]


def run(writer=None, judge=None, *, votes=0, rules=None, **options):
    models = {
        "writer": writer or StubModel(CANDIDATES),
        "judge": judge or StubModel({"yes": 1.0}, tokens=1, logprobs=logprobs),
    }

    async def go():
        async with (
            serving(models) as stub,
            stub.endpoint("writer") as write,
            stub.endpoint("judge") as judged,
        ):
            found = await safe_answer(
                write, ASK, helpful=Probe(judged, HELPFUL, votes),
                harmful=Probe(judged, HARMFUL, votes), rules=rules, **options,
            )  # fmt: skip
            return found, stub

    return asyncio.run(go())


def test_the_worked_example_end_to_end():
    rules = MixingRules(0.2, max_extra_harm=1.0)
    found, stub = run(candidates=12, rules=rules, seed=1)
    assert set(found.candidates) == set(SCORES)
    assert found.candidates[0] == REFUSAL
    lottery = dict(zip(found.candidates, found.probabilities, strict=True))
    assert lottery["vague"] == pytest.approx(0.6, abs=1e-6)
    assert lottery["useful"] == pytest.approx(0.4, abs=1e-6)
    assert found.price == pytest.approx(1.2, abs=1e-6)
    assert found.reason == "lottery"
    assert found.text == found.candidates[found.chosen]
    assert found.completion_tokens == 12 * 10 + 8
    assert found.prompt_tokens == 7 * len(stub.calls)
    again, _ = run(candidates=12, rules=rules, seed=1)
    assert again.text == found.text
    texts = {run(candidates=12, rules=rules, seed=seed)[0].text for seed in range(2, 12)}
    assert texts <= {"vague", "useful"}


def test_a_dangerous_answer_is_never_played_by_default():
    found, _ = run(StubModel({"blueprint": 1.0}))
    assert (found.text, found.reason) == (REFUSAL, "fallback")


def test_failed_probes_mean_not_played():
    found, _ = run(judge=StubModel({"yes": 1.0}, fail=lambda call: True))
    assert found.text == REFUSAL
    assert found.failures == 2 * len(found.candidates)


def test_probes_that_say_neither_mean_not_played():
    found, _ = run(judge=StubModel({"perhaps": 1.0}), votes=3)
    assert found.text == REFUSAL


def test_no_candidates():
    found, _ = run(StubModel({"x": 1.0}, fail=lambda call: True), candidates=3)
    assert (found.text, found.reason, found.failures) == (REFUSAL, "no candidates", 3)
    assert found.chat_completion()["choices"][0]["message"]["content"] == REFUSAL


def test_votes_in_place_of_logprobs():
    judge = StubModel({"Yes.": 0.5, "no": 0.5})
    found, _ = run(judge=judge, votes=40, rules=MixingRules(1.0, 1.0))
    scores = np.array([*found.helpful, *found.harmful])
    assert ((scores > 0.1) & (scores < 0.9)).all()


def test_yes_share():
    assert yes_share([]) is None
    assert yes_share([{"token": "maybe", "logprob": -0.1}]) is None
    assert yes_share([{"token": " Yes", "logprob": 0.0}]) == 1.0
    assert yes_share([{"token": "NO", "logprob": -1}, {"token": "yes", "logprob": None}]) == 0.0


def test_strategy_section():
    found = strategy_of({"gpusched": {"strategy": "safe-mixing", "budget": 0.05}})
    assert isinstance(found, SafeMixing)
    assert found.rules() == MixingRules(0.05, 0.5, 0.02, 0.02)
    assert found.probes(object())[1].question == HARMFUL
    for values, word in (
        ({"budget": -1}, "budget"), ({"candidates": 0}, "candidates"), ({"fallback": ""}, "fallback"),
        ({"helpful_question": "good?"}, "must contain"), ({"budgt": 0.1}, "did you mean budget"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            strategy_of({"gpusched": {"strategy": "safe-mixing", **values}})


def test_bad_input():
    with pytest.raises(InputError, match="candidates"):
        run(candidates=0)
    with pytest.raises(InputError, match="fallback"):
        run(fallback=" ")
    with pytest.raises(InputError, match="question"):
        Probe(object(), "good?")
    with pytest.raises(InputError, match="votes"):
        Probe(object(), HELPFUL, -1)
    with pytest.raises(InputError, match="messages"):
        asyncio.run(safe_answer(object(), [], helpful=None, harmful=None))
