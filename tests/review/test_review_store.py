"""The store: what it refuses, and that nothing is lost."""

import os
import re

import pytest

from gpusched.errors import InputError
from gpusched.review.files import write_text
from gpusched.review.paper import split_version, title_key
from gpusched.review.records import render_record
from gpusched.review.store import load_store


def edit(folder, old, new, count=1):
    path = folder / "papers.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def refusal(folder):
    with pytest.raises(InputError) as error:
        load_store(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  takeaway: ", "  takaway: ", "takaway: unknown key; did you mean takeaway?"),
        ("    method: 8", "    method: 11", "scores.method: must be less than or equal to 10, got 11"),
        ("    method: 8", "    method: eight", "scores.method: must be a valid integer"),
        ("    method: 8", "    method: 7.5", "scores.method: must be a valid integer"),
        ("  status: accepted", "  status: acepted", "status: must be candidate, accepted, rejected or withdrawn"),
        ("- arxiv: '2502.07115'", "- arxiv: '2406.01566'", "arxiv '2406.01566' is listed twice, first in line"),
        ("- arxiv: '2502.07115'", "- arxiv: 2502.07115", "is read as a number; put the id in quotes"),
        ("- arxiv: '2502.07115'", "- arxiv: '2502.7'", "arxiv: string should match pattern"),
        ("  updated: 2025-03-05", "  updated: March 2025", "updated: "),
        ("  updated: 2025-03-05\n", "", "updated: is missing; it is required"),
        ("  reproduce: helix", "  reproduce: hellix", "unknown paper 'hellix'; did you mean helix?"),
        ("  reproduce: helix", "  reproduce: wait", "wait is the rerun of 2504.11320"),
        ("  - max_flow_optimization\n", "  - Max Flow\n", "methods.0: string should match pattern"),
        ("  - milp\n", "  - max_flow_optimization\n", "'max_flow_optimization' is listed twice"),
        ("  status: accepted\n", "  status: accepted\n  status: candidate\n", "status is given twice, again in line"),
        ("  title: ", "  title: [", "not valid YAML"),
        ("  status: accepted", "  status: withdrawn", "needs the date, withdrawn: YYYY-MM-DD"),
    ],
)  # fmt: skip
def test_bad_edits_are_told_by_record_and_field(folder, old, new, words):
    edit(folder, old, new)
    message = refusal(folder)
    assert words in message
    assert "papers.yaml" in message
    assert re.search(r"line \d+", message)


def test_accepted_papers_need_a_takeaway(folder):
    path = folder / "papers.yaml"
    path.write_text(re.sub(r"  takeaway: .*\n", "", path.read_text(), count=1))
    assert "an accepted paper needs takeaway" in refusal(folder)


@pytest.mark.parametrize(
    "text", ["a: 1\n", "- 1\n", "- [1]\n", "\t- a\n", "&a [*a]\n", "- ? [a]\n  : 1\n"]
)
def test_other_documents_are_refused(folder, text):
    (folder / "papers.yaml").write_text(text)
    assert "papers.yaml" in refusal(folder)


def test_folder_without_a_review(tmp_path):
    assert "no review here" in refusal(tmp_path)


def test_saving_nothing_changes_nothing(folder):
    path = folder / "papers.yaml"
    text = path.read_text()
    store = load_store(folder)
    store.save(reversed(store.papers))
    assert path.read_text() == text


def test_render_and_parse_agree(folder):
    store = load_store(folder)
    path = folder / "papers.yaml"
    path.write_text("".join(render_record(p) for p in store.papers))
    assert load_store(folder).papers == store.papers


def test_one_change_is_one_line(folder):
    path = folder / "papers.yaml"
    before = path.read_text().splitlines()
    store = load_store(folder)
    store.replace(store.paper("2602.14516").model_copy(update={"version": 2}))
    after = path.read_text().splitlines()
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        ("  version: 1", "  version: 2")
    ]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "papers.yaml"
    path.write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="cannot write the file"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2502.14617", ("2502.14617", None)),
        ("2502.14617v12", ("2502.14617", 12)),
        ("http://arxiv.org/abs/2502.14617v2", ("2502.14617", 2)),
        ("https://export.arxiv.org/pdf/2502.14617v3.pdf", ("2502.14617", 3)),
        ("https://doi.org/10.48550/arXiv.2502.14617", ("2502.14617", None)),
        ("arXiv:2502.14617", ("2502.14617", None)),
        ("http://arxiv.org/abs/math.OC/0211159v1", ("math.OC/0211159", 1)),
        ("hep-th/9901001", ("hep-th/9901001", None)),
        ("https://doi.org/10.1145/3771576", ("", None)),
        ("", ("", None)),
    ],
)
def test_ids_of_every_spelling(text, expected):
    assert split_version(text) == expected


def test_titles_of_every_spelling():
    assert title_key("A  KV-Cache Budget.") == title_key("a kv cache\nbudget")
