"""Fronts: of the stored facts, of made graphs, and from snapshot to snapshot."""

from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.review.bridges import find_bridges, participation
from gpusched.review.communities import find_communities, modularity
from gpusched.review.field import differences, map_field
from gpusched.review.graph import Graph, Weights, build_graph
from gpusched.review.identity import match_fronts
from gpusched.review.paper import Paper
from gpusched.review.snapshot import FrontRecord, Snapshot, load_snapshots, save_snapshot
from gpusched.review.status import front_status
from gpusched.review.store import load_store

networkx = pytest.importorskip("networkx")


def paper(number, methods=(), problems=(), references=(), day=date(2025, 1, 1)):
    return Paper(
        arxiv=f"2501.{number:05d}",
        title=f"Paper {number}",
        status="candidate",
        submitted=day,
        updated=day,
        methods=methods,
        problems=problems,
        references=references,
    )


@pytest.fixture(scope="module")
def review():
    folder = Path(__file__).parents[2] / "review"
    return load_store(folder), load_snapshots(folder)


def test_the_five_fronts_are_found(review):
    store, snapshots = review
    field = map_field(store.reviewed, snapshots[:1])
    published = snapshots[0]
    assert published.origin == "published"
    assert field.snapshot.members == published.members
    assert field.communities.agreeing == field.communities.runs
    old = {f.front: f for f in published.fronts}
    for front in field.snapshot.fronts:
        assert front.density == old[front.front].density
        assert front.unique_methods == old[front.front].unique_methods
        assert front.shared_methods == old[front.front].shared_methods
    bridge = next(b for b in field.snapshot.bridges if b.arxiv == "2512.21487")
    assert (bridge.front, bridge.joins[0]) == (28, 14)
    assert bridge.score == pytest.approx(0.55, abs=0.1)


def test_what_differs_is_said(review):
    store, snapshots = review
    lines = differences(map_field(store.reviewed, snapshots[:1]).snapshot, snapshots[0])
    assert lines == [
        "front 23: stable against growing",
        "front 29: emerging against stable",
        "bridge 2512.21487: score 0.64 against 0.55, joins 14 against 14",
        "bridge 2602.00509: new, score 0.71",
        "bridge 2512.16134: new, score 0.63",
        "bridge 2509.21091: new, score 0.62",
        "bridge 2510.09330: new, score 0.61",
    ]


def test_a_snapshot_does_not_differ_from_itself(review):
    _, snapshots = review
    assert differences(snapshots[0], snapshots[0]) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "weights",
    [Weights(), Weights(references=0.0), Weights(references=0.5), Weights(problems=0.75)],
)
def test_fronts_do_not_hang_on_seed_or_weights(review, seed, weights):
    store, snapshots = review
    field = map_field(store.reviewed, snapshots[:1], seed=seed, weights=weights)
    assert field.snapshot.members == snapshots[0].members


def test_the_published_facts_carry_over(review, shared):
    import yaml

    path = shared / "data" / "review" / "fronts_2026-02-18.yaml"
    facts = yaml.safe_load(path.read_text())
    store, snapshots = review
    stored = {f.front: f for f in snapshots[0].fronts}
    for front in facts["fronts"]:
        mine = stored[front["front"]]
        assert mine.density == front["density"]
        assert mine.status == front["status"].lower()
        assert list(mine.unique_methods) == front["unique_methods"]
        for known in front["papers"]:
            record = store.paper(known["arxiv"])
            assert record.title == known["title"]
            assert str(record.updated) == known["date"]
            assert list(record.affiliations) == known["affiliations"]
            assert record.scores.model_dump() == {
                "method": known["M"], "practice": known["P"], "impact": known["I"],
            }  # fmt: skip
            assert list(record.flags) == [flag.lower() for flag in known["flags"]]
            assert list(record.llm_role) == [r for r in known["llm_role"] if r != "none"]


def test_weights_of_shared_items():
    papers = [
        paper(1, ("aa", "bb"), ("pp",)),
        paper(2, ("aa", "cc"), ("pp",)),
        paper(3, ("aa",), (), ("2501.00001",)),
    ]
    graph = build_graph(papers)
    # aa is shared by three (1/2 each pair), pp by two (1), and 3 cites 1 (1 over sqrt(2 * 2))
    assert graph.weights[0, 1] == pytest.approx(1.5)
    assert graph.weights[0, 2] == pytest.approx(0.5 + 0.5)
    assert graph.weights[1, 2] == pytest.approx(0.5)
    assert graph.density([0, 1, 2]) == 1.0
    assert build_graph(papers, Weights(edge=0.6)).density([0, 1, 2]) == pytest.approx(2 / 3)


@given(
    st.lists(
        st.lists(st.sampled_from(["aa", "bb", "cc", "dd", "ee", "ff"]), unique=True, max_size=4),
        min_size=1,
        max_size=9,
    ),
    st.integers(0, 3),
)
def test_graph_and_communities_keep_their_promises(tags, seed):
    papers = [paper(i, tuple(own)) for i, own in enumerate(tags, 1)]
    graph = build_graph(papers)
    n = len(papers)
    assert np.allclose(graph.weights, graph.weights.T)
    assert not graph.weights.diagonal().any()
    for tag in {tag for own in tags for tag in own}:
        holders = [i for i, own in enumerate(tags) if tag in own]
        if len(holders) > 1:
            # an item gives each of its papers one in all
            assert graph.weights[holders[0]].sum() >= 1 - 1e-9
    found = find_communities(graph, seed, runs=2)
    assert sorted(i for part in found.members for i in part) == list(range(n))
    assert found == find_communities(graph, seed, runs=2)
    tied = networkx.from_numpy_array(graph.weights)
    if tied.number_of_edges():
        theirs = networkx.community.modularity(tied, found.members)
        assert modularity(graph.weights, found.members) == pytest.approx(theirs)
    labels = [next(k for k, part in enumerate(found.members) if i in part) for i in range(n)]
    scores = participation(graph, labels)
    assert all(0 <= score <= 1 - 1 / max(len(found.members), 1) + 1e-9 for score in scores)


def test_participation_of_even_and_lone_ties():
    weights = np.zeros((4, 4))
    weights[0, 1] = weights[1, 0] = weights[0, 2] = weights[2, 0] = 1.0
    graph = Graph(tuple(paper(i) for i in range(1, 5)), weights, 0.5)
    assert participation(graph, [7, 7, 8, 8]) == pytest.approx([0.5, 0.0, 0.0, 0.0])
    (bridge,) = find_bridges(graph, [7, 7, 8, 8])
    assert (bridge.arxiv, bridge.front, bridge.joins, bridge.carries) == (
        "2501.00001",
        7,
        (8,),
        1.0,
    )


def test_fronts_keep_their_numbers():
    a, b, c = frozenset("abcd"), frozenset("efg"), frozenset("hi")
    earlier = {4: a, 9: b, 11: c}
    assert match_fronts([b, c, a], earlier, 12) == [9, 11, 4]
    # new papers do not make another front, and a split leaves the number with the larger part
    assert (
        match_fronts([frozenset("efgxyz"), frozenset("ab"), frozenset("cdq")], earlier, 12)[0] == 9
    )
    parted = match_fronts([frozenset("abc"), frozenset("d")], {4: a}, 5)
    assert parted == [4, 5]
    assert match_fronts([frozenset("xy"), frozenset("xyz")], {}, 3) == [4, 3]
    assert match_fronts([], {4: a}, 5) == []


def snapshot(day, members):
    fronts = tuple(
        FrontRecord(front=n, status="stable", density=1.0, papers=tuple(p))
        for n, p in members.items()
    )
    return Snapshot(date=day, origin="computed", fronts=fronts)


def test_status_over_time():
    day = date(2026, 6, 1)
    old = [paper(i, day=date(2026, 1, 1)) for i in range(1, 5)]
    new = [paper(i, day=date(2026, 5, 20)) for i in range(5, 7)]
    assert front_status(1, old, day) == "stable"
    assert front_status(1, [*old, new[0]], day) == "growing"
    assert front_status(1, [old[0], new[0]], day) == "emerging"
    assert front_status(1, old, date(2027, 6, 1)) == "declining"
    then = snapshot(date(2026, 4, 1), {1: [p.arxiv for p in (*old, *new)]})
    assert front_status(1, old, day, [then]) == "declining"
    assert front_status(1, [*old, *new], day, [then]) == "stable"
    assert front_status(2, old, day, [then]) == "emerging"
    # a snapshot of the last days says nothing about a month ago
    assert front_status(1, old, day, [snapshot(date(2026, 5, 30), {1: ["2501.00001"]})]) == "stable"


def test_snapshots_are_kept_and_facts_of_others_not_replaced(folder, review):
    store, snapshots = review
    field = map_field(store.reviewed, snapshots[:1])
    with pytest.raises(InputError, match="published by others and is kept"):
        save_snapshot(folder, field.snapshot)
    later = field.snapshot.model_copy(update={"date": date(2026, 3, 1)})
    path = save_snapshot(folder, later)
    assert load_snapshots(folder)[-1] == later
    path.rename(path.with_name("2026-03-02.yaml"))
    with pytest.raises(InputError, match="holds the snapshot of 2026-03-01; rename"):
        load_snapshots(folder)


def test_no_paper_no_map():
    with pytest.raises(InputError, match="no accepted paper"):
        map_field([])
