"""The vote against a real server on 127.0.0.1 with known answer distributions."""

import asyncio
from contextlib import AsyncExitStack

import pytest

pytest.importorskip("aiohttp")

from stub import StubModel, serving

from gpusched.errors import InputError
from gpusched.sampling.answers import AnswerFormat
from gpusched.sampling.endpoint import Endpoint, EndpointError
from gpusched.sampling.stopping import BayesFactor, Fixed
from gpusched.sampling.vote import Limits, vote

ASK = [{"role": "user", "content": "2 + 2?"}]
TEXT = AnswerFormat(kind="text")


def run(models, *, names=None, use=None, **options):
    """Serve ``models``, vote over them, and return the vote and the server."""

    async def go():
        async with serving(models) as stub, AsyncExitStack() as stack:
            endpoints = [
                await stack.enter_async_context(stub.endpoint(name, **(use or {})))
                for name in names or models
            ]
            found = await vote(endpoints, ASK, answer=TEXT, **options)
            await asyncio.sleep(0.05)
            return found, stub

    return asyncio.run(go())


def test_unanimous_votes_come_in_one_wave():
    found, stub = run({"m": StubModel({"4": 1.0}, latency_s=0.02)})
    assert (found.answer, found.samples, found.waves) == ("4", 5, 1)
    assert found.stop_reason == "confident"
    assert stub.most_running == 5
    assert found.cancelled == stub.aborted == 0
    assert (found.prompt_tokens, found.completion_tokens) == (35, 50)
    assert found.bayes_factor == pytest.approx(204.248, rel=1e-4)
    assert found.leader_share == 1.0


def test_no_sample_is_wasted():
    for seed in range(5):
        found, stub = run({"m": StubModel({"4": 0.6, "5": 0.4}, seed=seed)},
                          limits=Limits(samples=60))  # fmt: skip
        assert found.samples == sum(found.votes.values()) == len(stub.calls)
        assert found.cancelled == 0
        assert found.completion_tokens == 10 * len(stub.calls)


def test_rivals_are_told_apart_or_the_budget_ends():
    found, _ = run({"m": StubModel({"4": 0.5, "5": 0.5}, seed=2)}, limits=Limits(samples=9))
    assert found.stop_reason in ("budget", "decided")
    assert found.samples <= 9


def test_plain_majority_is_the_vote_without_threshold():
    fixed, stub = run({"m": StubModel({"4": 0.4, "5": 0.3, "6": 0.3})}, seed=7,
                      rule=Fixed(21), limits=Limits(samples=21))  # fmt: skip
    never, _ = run({"m": StubModel({"4": 0.4, "5": 0.3, "6": 0.3})}, seed=7,
                   rule=BayesFactor(float("inf")), limits=Limits(samples=21))  # fmt: skip
    assert fixed.answer == never.answer
    assert sorted(call["seed"] for call in stub.calls) == list(range(7, 7 + len(stub.calls)))


def test_launch_order_is_not_biased_towards_short_answers():
    """Wrong answers are short and fast: in order of arrival they win, in order of launch they lose."""
    slow = {"right": 0.15, "wrong": 0.0}
    model = {"m": StubModel({"right": 0.6, "wrong": 0.4}, latency_s=slow, seed=3)}
    options = {"rule": BayesFactor(10), "limits": Limits(samples=40, eagerness=8), "seed": 11}
    eager, _ = run(model, eager=True, **options)
    model = {"m": StubModel({"right": 0.6, "wrong": 0.4}, latency_s=slow, seed=3)}
    fair, _ = run(model, **options)
    assert eager.answer == "wrong"
    assert fair.answer == "right"


def test_what_is_under_way_is_cancelled_at_the_server():
    latency = {"4": 0.0}
    calls = StubModel({"4": 1.0}, latency_s=latency)
    slow = StubModel({"4": 1.0}, latency_s=30.0)
    found, stub = run(
        {"fast": calls, "slow": slow}, weights=[0.75, 0.25], eager=True,
        limits=Limits(eagerness=2),
    )  # fmt: skip
    assert found.answer == "4"
    assert found.cancelled > 0
    assert stub.aborted == found.cancelled
    assert stub.running == 0
    assert found.seconds < 5


def test_weights_are_followed():
    found, _ = run(
        {"a": StubModel({"x": 0.5, "y": 0.5}), "b": StubModel({"x": 0.5, "y": 0.5}, seed=1)},
        weights=[0.7, 0.3], rule=Fixed(40), limits=Limits(samples=40, parallel=8),
    )  # fmt: skip
    share = found.by_model["a"] / found.samples
    assert abs(share - 0.7) <= 1 / found.samples + 1e-9


def test_parallel_is_bounded():
    _, stub = run({"m": StubModel({"4": 1.0}, latency_s=0.01)}, rule=Fixed(12),
                  limits=Limits(samples=24, parallel=3))  # fmt: skip
    assert stub.most_running <= 3


def test_a_failing_endpoint_costs_no_votes():
    broken = StubModel({"4": 1.0}, fail=lambda call: True)
    found, stub = run({"good": StubModel({"4": 1.0}), "broken": broken})
    assert found.answer == "4"
    assert found.by_model == {"good": found.samples, "broken": 0}
    assert found.failures >= 3
    assert sum(call["model"] == "broken" for call in stub.calls) <= 4


def test_votes_survive_the_death_of_every_endpoint():
    model = StubModel({"4": 1.0}, fail=lambda call: call >= 3)
    found, _ = run({"m": model}, rule=BayesFactor(1e9), limits=Limits(samples=30, parallel=3))
    assert found.answer == "4"
    assert found.votes == {"4": 3}
    assert found.stop_reason == "endpoints failed"


def test_a_passing_failure_is_asked_again():
    found, _ = run({"m": StubModel({"4": 1.0}, fail=lambda call: call == 1)})
    assert found.votes == {"4": 5}
    assert found.failures == 1


def test_a_slow_endpoint_delays_no_further_than_the_deadline():
    models = {"m": StubModel({"4": 1.0}), "slow": StubModel({"4": 1.0}, latency_s=30)}
    found, _ = run(models, limits=Limits(deadline_s=0.3), rule=BayesFactor(1e6))
    assert found.stop_reason == "deadline"
    assert found.votes["4"] >= 2
    assert found.seconds < 5


def test_a_slow_endpoint_times_out_and_is_replaced():
    models = {"m": StubModel({"4": 1.0}), "slow": StubModel({"4": 1.0}, latency_s=30)}
    found, _ = run(models, use={"timeout_s": 0.2})
    assert found.answer == "4"
    assert found.by_model["slow"] == 0


def test_no_completion_at_all():
    with pytest.raises(EndpointError, match="500"):
        run({"m": StubModel({"4": 1.0}, fail=lambda call: True)})
    with pytest.raises(EndpointError, match="no completion within"):
        run({"m": StubModel({"4": 1.0}, latency_s=30)}, limits=Limits(deadline_s=0.1))

    async def nobody():
        async with Endpoint("http://127.0.0.1:9/v1", "m") as endpoint:
            await vote([endpoint], ASK)

    with pytest.raises(EndpointError, match="ClientConnectorError"):
        asyncio.run(nobody())


def test_answers_that_cannot_be_read_are_paid_for_but_are_no_votes():
    async def go():
        async with (
            serving({"m": StubModel({"nothing boxed": 1.0})}) as stub,
            stub.endpoint("m") as endpoint,
        ):
            return await vote([endpoint], ASK, limits=Limits(samples=6))

    found = asyncio.run(go())
    assert found.answer is None
    assert (found.samples, found.unparsed, found.stop_reason) == (6, 6, "budget")
    assert found.sample.text == "nothing boxed"
    assert found.leader_share == 0.0
    assert found.chat_completion()["usage"]["completion_tokens"] == 60


def test_one_sample():
    found, _ = run({"m": StubModel({"4": 1.0})}, limits=Limits(samples=1))
    assert (found.samples, found.stop_reason) == (1, "budget")


def test_a_decided_vote_ends_early_and_right():
    model = StubModel({"4": 1.0})
    found, stub = run({"m": model}, rule=BayesFactor(1e300), limits=Limits(samples=9))
    assert (found.answer, found.stop_reason) == ("4", "decided")
    assert found.samples == len(stub.calls) == 5


def test_hopeless_votes_end_where_asked():
    found, _ = run({"m": StubModel({str(i): 0.05 for i in range(20)})},
                   limits=Limits(samples=40, futile_below=0.2))  # fmt: skip
    assert found.stop_reason == "futile"
    assert found.samples < 40


def test_the_completion_reports_the_whole_bill():
    found, stub = run({"m": StubModel({"4": 1.0}, tokens=13)})
    document = found.chat_completion()
    assert document["choices"][0]["message"]["content"] == "4"
    assert document["usage"] == {"prompt_tokens": 35, "completion_tokens": 65, "total_tokens": 100}
    details = document["gpusched"]
    assert details["samples"] == len(stub.calls) == 5
    assert details["stop_reason"] == "confident"
    assert set(details) >= {"tokens", "leader_share", "bayes_factor", "votes", "by_model"}


def test_a_bug_in_a_model_is_not_swallowed():
    class Broken:
        name = "broken"

        async def complete(self, messages, **options):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(vote([Broken()], ASK))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: asyncio.run(vote([], ASK)), "models"),
        (lambda: asyncio.run(vote([Endpoint("http://x", "m")], ASK, weights=[1, 2])), "weights"),
        (lambda: Limits(samples=0), "samples"), (lambda: Limits(eagerness=0.5), "eagerness"),
        (lambda: Limits(deadline_s=0.0), "deadline_s"), (lambda: Limits(futile_below=1.0), "futile"),
        (lambda: Endpoint("example.com", "m"), "url"),
        (lambda: Endpoint("http://x", "m", timeout_s=0), "timeout_s"),
    ],
)  # fmt: skip
def test_bad_input(make, word):
    with pytest.raises(InputError, match=word):
        make()
