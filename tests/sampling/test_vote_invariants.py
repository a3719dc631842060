"""Many votes at once over models that are slow, fail and disagree: nothing lost, nothing over."""

import asyncio
import random

from gpusched.sampling.answers import AnswerFormat
from gpusched.sampling.endpoint import EndpointError, Sample
from gpusched.sampling.stopping import BayesFactor, Beta, Window
from gpusched.sampling.vote import Limits, vote

TEXT = AnswerFormat(kind="text")


class Unreliable:
    def __init__(self, name, rng, failing):
        self.name, self.rng, self.failing = name, rng, failing
        self.done = self.open = 0

    async def complete(self, messages, **options):
        self.open += 1
        try:
            await asyncio.sleep(self.rng.random() ** 4 * 0.05)
        finally:
            self.open -= 1
        if self.rng.random() < self.failing:
            raise EndpointError("out of order")
        self.done += 1
        return Sample({"content": self.rng.choice("aaabbc")}, 1, 1)


async def one(seed):
    rng = random.Random(seed)
    models = [Unreliable(str(i), rng, rng.choice([0, 0, 0.2, 1])) for i in range(rng.randint(1, 3))]
    limits = Limits(
        samples=rng.randint(1, 30), parallel=rng.randint(1, 16), eagerness=rng.choice([1, 2.5]),
        deadline_s=rng.choice([None, None, 0.03]),
    )  # fmt: skip
    rule = rng.choice([BayesFactor(100), Beta(), Window(3), BayesFactor(float("inf"))])
    try:
        found = await asyncio.wait_for(
            vote(models, [], answer=TEXT, limits=limits, rule=rule, eager=rng.random() < 0.5,
                 seed=seed), 30,
        )  # fmt: skip
    except EndpointError:
        assert sum(model.done for model in models) == 0
        return "error"
    done = sum(model.done for model in models)
    assert found.samples == found.completion_tokens == done <= limits.samples
    assert sum(found.by_model.values()) == done
    assert sum(found.votes.values()) + found.unparsed <= done
    assert sum(model.open for model in models) == 0
    if found.votes:
        assert found.votes[found.answer] == max(found.votes.values())
        assert found.sample.text == found.answer
    return found.stop_reason


def test_invariants():
    async def all_of_them():
        return await asyncio.gather(*(one(seed) for seed in range(150)))

    reasons = asyncio.run(all_of_them())
    assert {"decided", "budget", "confident", "deadline", "error"} <= set(reasons)


def test_a_cancelled_vote_leaves_nothing_under_way():
    async def go():
        model = Unreliable("m", random.Random(0), 0)
        model.rng.random = lambda: 5.0
        task = asyncio.ensure_future(vote([model], [], answer=TEXT))
        await asyncio.sleep(0.02)
        assert model.open == 5
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert model.open == 0

    asyncio.run(go())
