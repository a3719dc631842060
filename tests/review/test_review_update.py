"""Updates on answers in the form that arXiv and OpenAlex give them."""

import json
from datetime import date

import pytest
import requests

from gpusched.errors import InputError
from gpusched.review.decide import accept, reject
from gpusched.review.responses import check_answer
from gpusched.review.search_plan import load_state
from gpusched.review.store import load_store
from gpusched.review.update import update

DAY = date(2026, 3, 1)


def run(folder, tmp_path, day=DAY, **options):
    return update(load_store(folder), tmp_path / "cache", day, **options)


def test_proposes_like_papers_once_and_accepts_none(folder, tmp_path, sources):
    before = load_store(folder)
    done = run(folder, tmp_path)
    assert [p.arxiv for p in done.store.candidates if p.status != "candidate"] == []
    proposed = {p.arxiv: p for p in done.store.candidates}
    assert set(proposed) == {"2602.20001", "2602.20003", "2602.20005"}
    assert done.tally.unlike == {"2602.20002"}
    assert done.tally.without_id == 1
    assert {p.arxiv for p in before.reviewed} == {p.arxiv for p in done.store.reviewed}
    batching = proposed["2602.20001"]
    assert batching.nearest in {"2502.07115", "2504.11320"}
    assert batching.title == "Batching Requests for LLM Inference under a KV Cache Budget"
    assert batching.openalex == "W700001"
    assert batching.references == ("W11", "W12", "W13")
    assert batching.affiliations == ("Example University",)
    assert batching.seen == DAY
    assert proposed["2602.20003"].nearest == "2508.09229"


def test_new_versions_and_withdrawals_are_noticed(folder, tmp_path, sources):
    done = run(folder, tmp_path)
    assert done.tally.newer == ["2602.14516"]
    newer = done.store.paper("2602.14516").newer
    assert (newer.version, newer.updated) == (2, date(2026, 2, 26))
    assert done.store.paper("2602.14516").version == 1
    assert done.tally.withdrawn == ["2508.09229"]
    gone = done.store.paper("2508.09229")
    assert (gone.status, gone.withdrawn) == ("withdrawn", DAY)
    assert gone in done.store.reviewed
    cache = done.store.paper("2505.23970")
    assert (cache.version, cache.newer, cache.authors) == (2, None, ("Gil First", "Hal Second"))
    helix = done.store.paper("2406.01566")
    assert helix.openalex == "W800001"
    assert helix.references == ("W11", "W12", "W14", "W15")


def test_same_papers_another_day_change_nothing(folder, tmp_path, sources):
    run(folder, tmp_path)
    text = (folder / "papers.yaml").read_text()
    done = run(folder, tmp_path, date(2026, 3, 9))
    assert (folder / "papers.yaml").read_text() == text
    assert done.tally.proposed == []
    assert done.tally.newer == []
    assert done.since == date(2026, 2, 26)


def test_rejected_and_accepted_are_not_proposed_again(folder, tmp_path, sources):
    store = run(folder, tmp_path).store
    reject(store, "2602.20003", "no new idea")
    scores = {"method": 5, "practice": 5, "impact": 5}
    tags = {"methods": ["milp"], "problems": ["gpu_scheduling"]}
    accept(load_store(folder), "2602.20005v1", DAY, scores=scores, takeaway="Ours.", **tags)
    done = run(folder, tmp_path, date(2026, 3, 9))
    assert done.tally.proposed == []
    assert [p.arxiv for p in done.store.candidates] == ["2602.20001"]
    assert done.store.paper("2602.20003").note == "no new idea"
    assert done.store.paper("2602.20005").seen == DAY


def test_an_update_changes_the_lines_of_its_records_only(folder, tmp_path, sources):
    path = folder / "papers.yaml"
    commented = path.read_text().replace(
        "- arxiv: '2503.08796'", "# a note of mine\n- arxiv: '2503.08796'"
    )
    path.write_text(commented)
    run(folder, tmp_path)
    after = path.read_text()
    assert "# a note of mine\n- arxiv: '2503.08796'" in after
    changed = {"2406.01566", "2505.23970", "2508.09229", "2602.14516"}
    for block in commented.split("\n- arxiv: ")[1:]:
        if block[1:11] not in changed:
            assert block.split("\n#")[0] in after


@pytest.mark.parametrize("kind", ["arxiv known", "arxiv new", "openalex known", "openalex new"])
def test_network_down_then_up_loses_nothing(folder, tmp_path, sources, kind):
    whole = sources.answers[kind]
    sources.answers[kind] = requests.ConnectionError("Failed to resolve 'host'")
    with pytest.raises(
        InputError, match=r"cannot be reached \(Failed to resolve 'host'\)"
    ) as error:
        run(folder, tmp_path)
    assert "goes on from here" in str(error.value)
    state = load_state(folder)
    assert state.harvested_until is None
    sources.answers[kind] = whole
    asked = len(sources.asked)
    done = run(folder, tmp_path, date(2026, 3, 2))
    assert done.until == (DAY if state.under_way else date(2026, 3, 2))
    assert {p.arxiv for p in done.store.candidates} == {"2602.20001", "2602.20003", "2602.20005"}
    assert load_state(folder).harvested_until == done.until
    assert load_state(folder).under_way is None
    if kind == "openalex new":
        assert not any("arxiv.org/api" in url for url in sources.asked[asked:])


def test_offline_works_on_kept_answers(folder, tmp_path, sources):
    before = (folder / "papers.yaml").read_text()
    first = run(folder, tmp_path)
    after, state = (folder / "papers.yaml").read_text(), (folder / "state.json").read_text()
    asked = len(sources.asked)
    (folder / "papers.yaml").write_text(before)
    again = run(folder, tmp_path, date(2026, 3, 20), offline=True)
    assert len(sources.asked) == asked
    assert (again.until, again.tally.skipped) == (DAY, [])
    assert again.tally.proposed == first.tally.proposed
    assert (folder / "papers.yaml").read_text() == after.replace("2026-03-01", "2026-03-20")
    assert (folder / "state.json").read_text() == state


def test_offline_skips_what_is_not_kept(folder, tmp_path, sources):
    run(folder, tmp_path)
    done = run(folder, tmp_path, offline=True)
    # the ids of known papers are part of the address, and there are more of them now
    assert done.tally.skipped == ["arXiv, known papers 1", "OpenAlex, known papers 1"]
    assert done.tally.proposed == []


def test_offline_without_kept_answers_says_so(folder, tmp_path, sources):
    with pytest.raises(InputError, match="no kept answer to https://"):
        run(folder, tmp_path, offline=True)
    assert sources.asked == []


def test_truncated_feed_is_refused_and_not_kept(folder, tmp_path, sources):
    whole = sources.answers["arxiv new"]
    sources.answers["arxiv new"] = whole.read_bytes()[:2500]
    with pytest.raises(InputError, match="no complete Atom feed"):
        run(folder, tmp_path)
    assert load_store(folder).candidates == ()
    sources.answers["arxiv new"] = whole
    assert len(run(folder, tmp_path).store.candidates) == 3


@pytest.mark.parametrize(
    ("url", "body", "words"),
    [
        ("https://export.arxiv.org/api/query", b"", "no element found"),
        ("https://export.arxiv.org/api/query", b"<html><body>busy</body></html>", "root is html"),
        (
            "https://export.arxiv.org/api/query",
            b'<!DOCTYPE f [<!ENTITY a "aa">]><feed xmlns="http://www.w3.org/2005/Atom"/>',
            "document type",
        ),
        ("https://api.openalex.org/works", b'{"results": [', "JSON document"),
        ("https://api.openalex.org/works", b"[]", "not a JSON object"),
    ],
)
def test_answers_that_are_none(url, body, words):
    with pytest.raises(InputError, match=words):
        check_answer(url, body)


def test_empty_feeds_are_fine(folder, tmp_path, sources):
    answers = sources.answers["arxiv new"].parent
    for kind in sources.answers:
        name = "arxiv_empty.xml" if "arxiv" in kind else "openalex_empty.json"
        sources.answers[kind] = answers / name
    text = (folder / "papers.yaml").read_text()
    assert run(folder, tmp_path).tally.seen == 0
    assert (folder / "papers.yaml").read_text() == text


def test_errors_of_the_sources_are_told(folder, tmp_path, sources):
    feed = sources.answers["arxiv new"].read_text()
    refused = feed.replace("http://arxiv.org/abs/2602.20001v1", "http://arxiv.org/api/errors#bad")
    whole = sources.answers["arxiv new"]
    sources.answers["arxiv new"] = refused.encode()
    with pytest.raises(InputError, match="arXiv refuses the query"):
        run(folder, tmp_path)
    sources.answers["arxiv new"] = whole
    (tmp_path / "cache").rename(tmp_path / "old")
    sources.answers["openalex new"] = 503
    with pytest.raises(InputError, match=r"OpenAlex cannot be reached \(status 503\)"):
        run(folder, tmp_path)


def test_an_edit_during_an_update_is_kept(folder, tmp_path, sources):
    store = load_store(folder)
    path = folder / "papers.yaml"
    edited = path.read_text() + "# edited meanwhile\n"
    path.write_text(edited)
    with pytest.raises(InputError, match="changed since it was read; nothing was written"):
        update(store, tmp_path / "cache", DAY)
    assert path.read_text() == edited


def test_state_is_json_a_human_can_read(folder, tmp_path, sources):
    run(folder, tmp_path)
    assert json.loads((folder / "state.json").read_text()) == {
        "harvested_since": "2026-02-18",
        "harvested_until": "2026-03-01",
    }
