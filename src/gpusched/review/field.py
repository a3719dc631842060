"""The map of the field: fronts, bridges, and how they differ from an earlier snapshot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from gpusched.errors import InputError
from gpusched.review.bridges import find_bridges
from gpusched.review.communities import Communities, find_communities
from gpusched.review.graph import Graph, Weights, build_graph
from gpusched.review.identity import match_fronts
from gpusched.review.paper import Paper
from gpusched.review.snapshot import BridgeRecord, FrontRecord, Snapshot
from gpusched.review.status import front_status

TOP = 5


@dataclass(frozen=True)
class Field:
    """Fronts with the graph they were found in."""

    snapshot: Snapshot
    graph: Graph
    communities: Communities

    def front_of(self, arxiv: str) -> int:
        """Return the number of a paper's front."""
        return next(f.front for f in self.snapshot.fronts if arxiv in f.papers)


def map_field(
    papers: Sequence[Paper],
    snapshots: Sequence[Snapshot] = (),
    *,
    as_of: date | None = None,
    seed: int = 0,
    weights: Weights = Weights(),  # noqa: B008
) -> Field:
    """Return the fronts of papers.

    Args:
        papers: reviewed ones.
        snapshots: stored ones, from which fronts take their numbers.
        as_of: the day; the latest on which a paper was listed or a snapshot taken by default.
            Papers submitted later are left out.
        seed: of the Louvain runs.
        weights: of shared items.

    Raises:
        InputError: there is no paper to map.
    """
    day = as_of or max([s.date for s in snapshots] + [p.day for p in papers], default=date.min)
    papers = sorted((p for p in papers if p.first_submitted <= day), key=lambda p: p.arxiv)
    if not papers:
        raise InputError("no accepted paper to map; accept some with 'gpusched review accept'")
    graph = build_graph(papers, weights)
    communities = find_communities(graph, seed)
    groups = [frozenset(papers[i].arxiv for i in part) for part in communities.members]
    known = [s for s in snapshots if s.date <= day]
    earlier = known[-1].members if known else {}
    used = [number for s in snapshots for number in s.members]
    numbers = match_fronts(groups, earlier, max(used, default=0) + 1)
    labels = [0] * len(papers)
    for part, number in zip(communities.members, numbers, strict=True):
        for i in part:
            labels[i] = number
    fronts = [
        _front(number, [papers[i] for i in part], papers, graph, part, day, known)
        for part, number in zip(communities.members, numbers, strict=True)
    ]
    bridges = [
        BridgeRecord(
            arxiv=b.arxiv,
            score=round(b.score, 2),
            front=b.front,
            joins=b.joins,
            carries=round(b.carries, 2),
        )
        for b in find_bridges(graph, labels)
    ]
    snapshot = Snapshot(
        date=day,
        origin="computed",
        seed=seed,
        fronts=tuple(sorted(fronts, key=lambda f: (-len(f.papers), f.front))),
        bridges=tuple(bridges),
    )
    return Field(snapshot, graph, communities)


def differences(found: Snapshot, stored: Snapshot) -> list[str]:
    """Return where a snapshot differs from a stored one, a line each; empty where it does not.

    Compared are members, densities, statuses, unique and shared methods, and bridges. Of leading
    methods and problems, others' snapshots do not say how they were chosen.
    """
    lines = []
    ours, theirs = found.members, stored.members
    for number in sorted(ours.keys() | theirs.keys()):
        new, gone = ours.get(number, frozenset()), theirs.get(number, frozenset())
        if number not in theirs:
            lines.append(f"front {number}: new, {_list(new)}")
        elif number not in ours:
            lines.append(f"front {number}: not found, {_list(gone)}")
        else:
            if new - gone:
                lines.append(f"front {number}: holds {_list(new - gone)} too")
            if gone - new:
                lines.append(f"front {number}: does not hold {_list(gone - new)}")
    records = {f.front: f for f in found.fronts}
    for old in stored.fronts:
        if (now := records.get(old.front)) is None:
            continue
        if round(now.density, 2) != round(old.density, 2):
            lines.append(f"front {old.front}: density {now.density:.2f} against {old.density:.2f}")
        if now.status != old.status:
            lines.append(f"front {old.front}: {now.status} against {old.status}")
        for kind in ("unique_methods", "shared_methods"):
            extra = set(getattr(now, kind)) - set(getattr(old, kind))
            lost = set(getattr(old, kind)) - set(getattr(now, kind))
            if extra or lost:
                plus = f"more: {_list(extra)}" if extra else ""
                minus = f"less: {_list(lost)}" if lost else ""
                words = "; ".join(filter(None, (plus, minus)))
                lines.append(f"front {old.front}: {kind.replace('_', ' ')}, {words}")
    scores = {b.arxiv: b for b in found.bridges}
    for bridge in stored.bridges:
        mine = scores.pop(bridge.arxiv, None)
        if mine is None:
            lines.append(f"bridge {bridge.arxiv}: not found, score {bridge.score:.2f} there")
        elif (mine.score, mine.joins[:1]) != (bridge.score, bridge.joins[:1]):
            lines.append(
                f"bridge {bridge.arxiv}: score {mine.score:.2f} against {bridge.score:.2f}, "
                f"joins {_list(map(str, mine.joins))} against {_list(map(str, bridge.joins))}"
            )
    lines += [f"bridge {b.arxiv}: new, score {b.score:.2f}" for b in scores.values()]
    return lines


def _front(
    number: int,
    own: Sequence[Paper],
    papers: Sequence[Paper],
    graph: Graph,
    part: Sequence[int],
    day: date,
    snapshots: Sequence[Snapshot],
) -> FrontRecord:
    members = {p.arxiv for p in own}
    methods = {m for p in own for m in p.methods}
    elsewhere = {m for p in papers if p.arxiv not in members for m in p.methods}
    return FrontRecord(
        front=number,
        status=front_status(number, own, day, snapshots),
        density=round(graph.density(part), 2),
        papers=tuple(sorted(members)),
        methods=_top([p.methods for p in own]),
        problems=_top([p.problems for p in own]),
        unique_methods=tuple(sorted(methods - elsewhere)),
        shared_methods=tuple(sorted(methods & elsewhere)),
    )


def _top(tags: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the tags of most papers; among equals, what papers list first."""
    counts = Counter(tag for own in tags for tag in own)
    place = {tag: min(own.index(tag) for own in tags if tag in own) for tag in counts}
    return tuple(sorted(counts, key=lambda tag: (-counts[tag], place[tag], tag))[:TOP])


def _list(values: object) -> str:
    return ", ".join(sorted(values))  # type: ignore[call-overload]
