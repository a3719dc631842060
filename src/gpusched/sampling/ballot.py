"""Votes as they come in, and their leader."""

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Answer = TypeVar("Answer", bound=Hashable)


class Tally(NamedTuple):
    """What stopping rules see: no answers, only how often each was given."""

    counts: tuple[int, ...]
    """Votes of each distinct answer, in descending order."""
    run: int
    """Latest votes that agree with one another."""
    run_leads: bool
    """Whether those are for the leader."""
    blank: int = 0
    """Samples without an answer."""

    @property
    def votes(self) -> int:
        """All votes."""
        return sum(self.counts)

    @property
    def lead(self) -> int:
        """Votes by which the leader is ahead of the next answer."""
        return (
            self.counts[0] - (self.counts[1] if len(self.counts) > 1 else 0) if self.counts else 0
        )

    def after_leader_votes(self, more: int) -> "Tally":
        """Return the tally after ``more`` further votes for the leader."""
        if more == 0:
            return self
        counts = (self.counts[0] + more, *self.counts[1:]) if self.counts else (more,)
        return Tally(counts, more + (self.run if self.run_leads else 0), True, self.blank)


EMPTY = Tally((), 0, False)


class Ballot(Generic[Answer]):
    """Counts of answers; ties go to the answer that reached the count first."""

    def __init__(self) -> None:
        self.votes: dict[Answer, int] = {}
        self.leader: Answer | None = None
        self._sorted: list[int] = []
        self._latest: Answer | None = None
        self._run = 0
        self._blank = 0

    def add(self, answer: Answer) -> None:
        """Count a vote."""
        count = self.votes.get(answer, 0)
        self.votes[answer] = count + 1
        if count:
            self._sorted[self._sorted.index(count)] += 1
        else:
            self._sorted.append(1)
        self._run = self._run + 1 if answer == self._latest else 1
        self._latest = answer
        if self.leader is None or count + 1 > self.votes[self.leader]:
            self.leader = answer

    def add_blank(self) -> None:
        """Count a sample without an answer."""
        self._blank += 1

    @property
    def tally(self) -> Tally:
        """The counts alone."""
        leads = self.leader is not None and self._latest == self.leader
        return Tally(tuple(self._sorted), self._run, leads, self._blank)
