"""``gpusched review`` as a user calls it."""

import json
import subprocess
import sys

import pytest
from test_review_summaries import GOOD, Model

from gpusched.cli import main as cli
from gpusched.review.store import load_store

pytest.importorskip("networkx")


@pytest.fixture
def call(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpusched", "review", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_fronts_as_json(call, folder):
    code, out, _ = call("fronts", "--store", folder, "--json")
    assert code == 0
    document = json.loads(out)
    assert [(f["front"], len(f["papers"]), f["density"]) for f in document["fronts"]] == [
        (14, 7, 0.81), (4, 3, 1.0), (23, 3, 0.67), (28, 2, 1.0), (29, 2, 1.0),
    ]  # fmt: skip
    assert {"arxiv", "score", "front", "joins", "carries"} <= document["bridges"][0].keys()
    assert document["compared_with"] == "2026-02-18"
    assert document["runs_agreeing"] == document["runs"]


def test_fronts_of_an_earlier_day_and_saved(call, folder):
    code, out, _ = call("fronts", "--store", folder, "--as-of", "2025-12-31", "--json")
    papers = [a for f in json.loads(out)["fronts"] for a in f["papers"]]
    assert code == 0
    assert "2602.14516" not in papers
    assert len(papers) == 14
    assert call("fronts", "--store", folder, "--as-of", "2026-03-01", "--save")[0] == 0
    assert (folder / "snapshots" / "2026-03-01.yaml").is_file()
    code, _, err = call("fronts", "--store", folder, "--as-of", "soon")
    assert (code, err) == (2, "error: --as-of: 'soon' is no day; write YYYY-MM-DD\n")


def test_update_accept_reject_and_summaries(call, folder, sources, monkeypatch):
    code, out, _ = call("update", "--store", folder, "--until", "2026-03-01", "--json")
    document = json.loads(out)
    assert code == 0
    ranks = [p["similarity"] for p in document["proposed"]]
    assert len(ranks) == 3
    assert ranks == sorted(ranks, reverse=True)
    assert (document["newer"], document["withdrawn"]) == (["2602.14516"], ["2508.09229"])
    with Model(json.dumps(GOOD | {"quotes": ["limits the batch"]})) as model:
        code, out, _ = call(
            "summaries", "2602.20001", "--store", folder,
            "--endpoint", model.endpoint.url, "--model", "small",
        )  # fmt: skip
    assert code == 0
    assert load_store(folder).paper("2602.20001").draft.model == "small"
    assert load_store(folder).paper("2602.20001").takeaway is None
    code, out, _ = call("accept", "--store", folder)
    assert (code, "by small: Admit by threshold." in out) == (0, True)
    marks = ("--method", 7, "--practice", 8)
    code, _, err = call("accept", "2602.20001", "--store", folder, *marks)
    assert (code, "give --impact" in err) == (2, True)
    code, _, err = call("accept", "2602.20001", "--store", folder, *marks, "--impact", 6)
    assert (code, "an accepted paper needs takeaway" in err) == (2, True)
    code, out, _ = call(
        "accept", "2602.20001", "--store", folder, *marks, "--impact", 6, "--takeaway", "Ours.",
        "--methods", "online_scheduling,threshold_based_scheduling", "--problems", "kv_cache_management",
    )  # fmt: skip
    assert code == 0
    paper = load_store(folder).paper("2602.20001")
    assert (paper.status, paper.draft, paper.similarity, paper.takeaway) == (
        "accepted",
        None,
        None,
        "Ours.",
    )
    assert call("accept", "2602.20001", "--store", folder, "--impact", 9)[0] == 0
    assert load_store(folder).paper("2602.20001").scores.impact == 9
    assert call("reject", "2602.20003", "--store", folder, "--note", "an old idea")[0] == 0
    code, _, err = call("reject", "2602.20003", "--store", folder)
    assert (code, "only a candidate is rejected" in err) == (2, True)
    code, _, err = call("accept", "2508.09229", "--store", folder, *marks, "--impact", 1)
    assert (code, "was withdrawn on 2026-03-01" in err) == (2, True)
    code, _, err = call("reject", "2602.99999", "--store", folder)
    assert (code, "unknown paper '2602.99999'" in err) == (2, True)


def test_build_and_check(call, repository):
    store, page = repository / "review", repository / "docs" / "field-map.md"
    options = ("--store", store, "--markdown", page)
    assert call("build", *options, "--check")[0] == 0
    code, out, err = call("build", *options, "--site", repository / "site", "--json")
    document = json.loads(out)
    assert (code, err, document["shortcomings"]) == (0, "", [])
    assert (document["papers"], document["fronts"], len(document["verdicts"])) == (17, 5, 17)
    (store / "verdicts" / "wait.json").unlink()
    code, out, err = call("build", *options, "--check")
    assert (code, out) == (2, "")
    assert err.startswith("error: 2504.11320: no verdict of wait")
    code, _, err = call("build", *options, "--site", repository / "site")
    assert (code, "warning: 2504.11320: no verdict of wait" in err) == (0, True)


def test_verdicts_are_rerun_and_kept(call, folder):
    path = folder / "verdicts" / "findep.json"
    path.unlink()
    code, out, _ = call("verdicts", "findep", "--store", folder, "--json")
    assert code == 0
    assert path.is_file()
    assert len(json.loads(out)) == 17
    (folder / "one.json").write_text(path.read_text())
    path.unlink()
    assert call("verdicts", "--from", folder / "one.json", "--store", folder)[0] == 0
    assert path.is_file()
    code, _, err = call("verdicts", "fidnep", "--store", folder)
    assert (code, "did you mean findep?" in err) == (2, True)
    (folder / "one.json").write_text("{")
    code, _, err = call("verdicts", "--from", folder / "one.json", "--store", folder)
    assert (code, "not valid JSON" in err) == (2, True)


@pytest.mark.parametrize("command", ["update", "fronts", "build", "verdicts", "summaries"])
def test_no_review_here(call, tmp_path, command, monkeypatch):
    monkeypatch.setenv("GPUSCHED_REVIEW_ENDPOINT", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("GPUSCHED_REVIEW_MODEL", "m")
    code, _, err = call(command, "--store", tmp_path)
    assert (code, "no review here" in err) == (2, True)


def test_help_needs_no_extra():
    """The commands are listed where networkx, arxiv and pyalex are not installed."""
    code = (
        "import sys\nfor name in ('networkx', 'arxiv', 'pyalex', 'requests'): sys.modules[name] = None\n"
        "sys.argv = ['gpusched', 'review', '--help']\n"
        "from gpusched.cli.main import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "update" in done.stdout
    code = code.replace("'--help'", "'update'")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'gpusched[review]'" in done.stderr
