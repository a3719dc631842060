"""The request field that asks for a strategy."""

import asyncio
import sys

import pytest

from gpusched.errors import InputError
from gpusched.sampling.endpoint import Endpoint
from gpusched.sampling.stopping import BayesFactor, Beta, Confidence, Fixed
from gpusched.sampling.strategy import BestOfN, strategy_of


def best(**values):
    found = strategy_of({"gpusched": {"strategy": "best-of-n", **values}})
    assert isinstance(found, BestOfN)
    return found


def test_rules():
    assert strategy_of({"messages": []}) is None
    assert best().stopping_rule() == BayesFactor(100.0)
    assert best(confidence=0.99).stopping_rule() == Confidence(0.99)
    assert best(rule="beta").stopping_rule() == Beta(0.95)
    assert best(rule="fixed", max_samples=7).stopping_rule() == Fixed(7)
    found = best(answer={"kind": "choice"}, models={"a": 0.7, "b": 0.3}, deadline_s=20)
    assert found.answer.kind == "choice"
    assert found.limits().deadline_s == 20


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("best-of-n", "strategy"),
        ({"confidence": 0.9}, "strategy"),
        ({"strategy": "best-of"}, "did you mean best-of-n"),
        ({"strategy": 3}, "strategy"),
        ({"strategy": "best-of-n", "confidence": 1.5}, "confidence"),
        ({"strategy": "best-of-n", "confidence": float("nan")}, "confidence"),
        ({"strategy": "best-of-n", "confidence": 0.9, "bayes_factor": 3}, "not both"),
        ({"strategy": "best-of-n", "rule": "beta", "bayes_factor": 3}, "does not apply"),
        ({"strategy": "best-of-n", "rule": "fixed", "confidence": 0.9}, "does not apply"),
        ({"strategy": "best-of-n", "max_samples": 0}, "max_samples"),
        ({"strategy": "best-of-n", "models": {"a": -1}}, "models"),
        ({"strategy": "best-of-n", "models": {"a": 0}}, "models"),
        ({"strategy": "best-of-n", "answer": {"kind": "box"}}, "did you mean boxed"),
        ({"strategy": "best-of-n", "confidense": 0.9}, "did you mean confidence"),
    ],
)
def test_bad_fields(field, word):
    with pytest.raises(InputError, match=word):
        strategy_of({"gpusched": field})


def test_endpoints_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(InputError, match=r"gpusched\[sampling\]"):
        asyncio.run(Endpoint("http://127.0.0.1:1/v1", "m").complete([]))
