"""Stopping rules replayed over a log of answers, all on the same draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.sampling.answer_log import PromptAnswers
from gpusched.sampling.ballot import Ballot
from gpusched.sampling.stopping import StoppingRule, decided

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule did. Arrays of shape (prompts, trials)."""

    right: Floats
    """1 where the leader was right (or, without right answers, the log's most frequent one)."""
    samples: Floats
    tokens: Floats
    """Completion tokens of those samples; nan where the log has none."""

    @property
    def accuracy(self) -> float:
        """Mean over prompts and trials."""
        return float(self.right.mean())

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over trials of the same prompts."""
        trials = self.right.shape[1]
        return float(self.right.mean(axis=0).std(ddof=1) / trials**0.5) if trials > 1 else np.inf


def replay(
    log: Sequence[PromptAnswers],
    rules: Mapping[str, StoppingRule],
    *,
    samples: int = 100,
    trials: int = 20,
    certain: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Outcome]:
    """Return what each rule does with up to ``samples`` draws from every prompt's answers.

    Draws are with replacement and the same for all rules. ``certain`` also stops where no further
    votes can change the leader.

    Raises:
        InputError: an empty log, no rules, or fewer than one sample or trial.
    """
    for name, value in (("log", len(log)), ("rules", len(rules)), ("samples", samples),
                        ("trials", trials)):  # fmt: skip
        if value < 1:
            raise InputError(f"{name}: at least one is needed")
    rng = np.random.default_rng(seed)
    shape = (len(log), trials)
    found = {name: Outcome(np.zeros(shape), np.zeros(shape), np.zeros(shape)) for name in rules}
    for q, prompt in enumerate(log):
        progress(f"replay: {q} of {len(log)} prompts")
        target = right_answer(prompt)
        share = prompt.counts / prompt.counts.sum()
        draws = rng.choice(len(share), size=(trials, samples), p=share)
        empty = prompt.answers.index(None) if None in prompt.answers else -1
        for t in range(trials):
            drawn = draws[t].tolist()
            stops = _one(drawn, rules, empty, certain)
            used = np.cumsum(prompt.tokens[draws[t]])
            for name, (leader, taken) in stops.items():
                outcome = found[name]
                outcome.right[q, t] = leader is not None and leader == target
                outcome.samples[q, t] = taken
                outcome.tokens[q, t] = used[taken - 1]
    return found


def right_answer(prompt: PromptAnswers) -> int:
    """Position of the right answer; of the most frequent one where it is unknown."""
    if prompt.gold != -2:
        return prompt.gold
    counts = np.where([answer is None for answer in prompt.answers], -1, prompt.counts)
    return int(counts.argmax())


def _one(
    drawn: Sequence[int], rules: Mapping[str, StoppingRule], empty: int, certain: bool
) -> dict[str, tuple[int | None, int]]:
    """Return each rule's leader and number of samples in one sequence of answers."""
    ballot: Ballot[int] = Ballot()
    stops: dict[str, tuple[int | None, int]] = {}
    going = list(rules.items())
    for taken, answer in enumerate(drawn, 1):
        if answer == empty:
            ballot.add_blank()
        else:
            ballot.add(answer)
        tally = ballot.tally
        if certain and decided(tally, len(drawn) - taken):
            for name, _ in going:
                stops[name] = (ballot.leader, taken)
            return stops
        done = [name for name, rule in going if rule.stops(tally)]
        for name in done:
            stops[name] = (ballot.leader, taken)
        if done:
            going = [(name, rule) for name, rule in going if name not in stops]
            if not going:
                return stops
    for name, _ in going:
        stops[name] = (ballot.leader, len(drawn))
    return stops
