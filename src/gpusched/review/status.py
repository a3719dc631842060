"""Whether a front emerges, grows, stays or declines, from its papers over time."""

from collections.abc import Iterable
from datetime import date, timedelta

from gpusched.review.paper import Paper
from gpusched.review.snapshot import FrontStatus, Snapshot

WINDOW = timedelta(days=30)
SILENCE = timedelta(days=365)
GROWTH = 1.25


def front_status(
    number: int,
    papers: Iterable[Paper],
    as_of: date,
    snapshots: Iterable[Snapshot] = (),
) -> FrontStatus:
    """Return a front's status.

    What the front held a window of 30 days ago is read from the latest snapshot of then or
    earlier; before the first snapshot it is counted by when its papers were submitted. A front of
    fewer than two papers was none.

    * emerging: it was none a window ago;
    * growing: it has at least a quarter more papers than then;
    * declining: it has a quarter fewer, or no paper was submitted for a year;
    * stable otherwise.

    Args:
        number: of the front.
        papers: that it holds now.
        as_of: the day.
        snapshots: stored ones.
    """
    now = list(papers)
    past = [s for s in snapshots if s.date <= as_of - WINDOW]
    if past:
        then = len(max(past, key=lambda s: s.date).members.get(number, ()))
    else:
        then = sum(p.first_submitted <= as_of - WINDOW for p in now)
    if then < 2:
        return "emerging"
    if len(now) >= GROWTH * then:
        return "growing"
    newest = max(p.first_submitted for p in now)
    if GROWTH * len(now) <= then or newest < as_of - SILENCE:
        return "declining"
    return "stable"
