"""Logs, replay and calibration."""

import gzip
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gpusched.cli.main import app
from gpusched.errors import InputError
from gpusched.sampling.answer_log import PromptAnswers, read_answer_log
from gpusched.sampling.calibration import calibrate
from gpusched.sampling.replay import replay
from gpusched.sampling.stopping import BayesFactor, Fixed


def prompt(shares, gold=0, name="q"):
    counts = np.array(shares, np.int64)
    tokens = np.arange(1.0, len(counts) + 1)
    return PromptAnswers(name, tuple(f"a{i}" for i in range(len(counts))), counts, tokens, gold)


LOG = [prompt([70, 20, 10]), prompt([45, 40, 15]), prompt([30, 50, 20]), prompt([99, 1])]


def test_never_stopping_is_plain_majority():
    found = replay(LOG, {"never": BayesFactor(float("inf")), "all": Fixed(25)}, samples=25)
    assert (found["never"].right == found["all"].right).all()
    assert (found["never"].samples == 25).all()


def test_a_decided_vote_is_the_same_vote():
    rules = {"B": BayesFactor(30), "never": BayesFactor(float("inf"))}
    full = replay(LOG, rules, samples=31, seed=4)
    early = replay(LOG, rules, samples=31, seed=4, certain=True)
    for name in rules:
        assert (full[name].right == early[name].right).all()
    assert early["never"].samples.mean() < 31


def test_fixed_numbers_converge_to_the_mode():
    found = replay(LOG, {"1": Fixed(1), "400": Fixed(400)}, samples=400, trials=50)
    one = found["1"].right.mean(axis=1)
    shares = np.array([0.7, 0.45, 0.3, 0.99])
    assert (np.abs(one - shares) < 4 * np.sqrt(shares * (1 - shares) / 50) + 1e-9).all()
    assert found["400"].right.mean(axis=1)[[0, 2, 3]].tolist() == [1.0, 0.0, 1.0]


def test_tokens_are_those_of_the_samples_taken():
    found = replay([prompt([1, 1])], {"2": Fixed(2)}, samples=2, trials=400)
    assert found["2"].tokens.mean() == pytest.approx(3.0, abs=0.15)


def test_blanks_cost_samples_and_are_no_votes():
    blank = PromptAnswers("q", (None, "a"), np.array([9, 1]), np.array([5.0, 1.0]), 1)
    found = replay([blank], {"3": Fixed(3), "B": BayesFactor(4)}, samples=40, trials=200)
    assert (found["3"].samples == 3).all()
    assert 0.15 < found["3"].accuracy < 0.4
    assert found["B"].accuracy > 0.95


def test_calibration_recommends_the_cheapest_within_the_tolerance():
    found = calibrate(LOG[:1] * 20 + LOG[3:] * 60, samples=40, trials=20)
    chosen = found.recommended
    assert chosen is not None
    assert chosen.lost <= 0.005
    assert chosen.accuracy >= found.full.accuracy - 0.005
    assert chosen.samples < 20
    for point in found.points:
        if point.kind == "bayes factor" and point.samples < chosen.samples:
            assert point.lost > 0.005
    assert [p.samples for p in found.points if p.kind == "fixed"] == [1, 3, 5, 10, 16, 32, 40]


def test_without_right_answers_agreement_is_measured():
    found = calibrate([prompt([6, 3], gold=-2)], samples=20, trials=30)
    assert not found.has_gold
    assert found.full.accuracy > 0.7
    with pytest.raises(InputError, match="gold"):
        calibrate([prompt([6, 3], gold=-2), prompt([6, 3])])


def write(folder, name, lines):
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_every_shape_of_log(tmp_path):
    one = write(
        tmp_path, "a.csv", ["prompt,answer,gold,tokens", "q,4,4,10", "q,5,4,20", "q,4.0,4,30"]
    )
    many = write(tmp_path, "b.jsonl", [
        json.dumps({"id": "q", "answers": ["4", "5", "4"], "gold": 4, "tokens": [10, 20, 30]})
    ])  # fmt: skip
    raw = write(tmp_path, "c.jsonl", [
        json.dumps({"prompt": "q", "response": rf"so \boxed{{{a}}}", "gold": "4", "tokens": t})
        for a, t in ((4, 10), (5, 20), (4, 30))
    ])  # fmt: skip
    counted = write(tmp_path, "d.csv", [
        "problem,answer,count,is_gold,gen_len_mean", "q,4,2,True,20", "q,5,1,False,20",
    ])  # fmt: skip
    packed = tmp_path / "e.csv.gz"
    packed.write_bytes(gzip.compress(one.read_bytes()))
    for path in (one, many, raw, counted, packed):
        (found,) = read_answer_log(path)
        assert dict(zip(found.answers, found.counts.tolist(), strict=True)) == {"4": 2, "5": 1}
        assert found.answers[found.gold] == "4"
        assert found.tokens.tolist() == [20.0, 20.0]


def test_right_answers_nobody_gave(tmp_path):
    path = write(tmp_path, "a.csv", ["prompt,answer,count,is_gold", "q,4,2,False"])
    assert read_answer_log(path)[0].gold == -1
    path = write(tmp_path, "a.csv", ["prompt,answer,gold", "q,4,7"])
    assert read_answer_log(path)[0].gold == -1
    path = write(tmp_path, "a.csv", ["prompt,answer", "q,4"])
    assert read_answer_log(path)[0].gold == -2


@pytest.mark.parametrize(
    ("name", "lines", "word"),
    [
        ("a.csv", ["prompt,answer"], "no rows"),
        ("a.csv", ["answer", "4"], "no prompt"),
        ("a.csv", ["prompt,text", "q,4"], "expected answer"),
        ("a.csv", ["prompt,answer,count", "q,4,x"], "count must be a whole number"),
        ("a.csv", ["prompt,answer,count", "q,4,-1"], "count must be a whole number"),
        ("a.csv", ["prompt,answer,tokens", "q,4,x"], "tokens must be a number"),
        ("a.csv", ["prompt,answer,gold", "q,4,4", "q,4,5"], "several right answers"),
        ("a.jsonl", ['{"prompt": 1, "answers": "4"}'], "must be a list"),
        ("a.jsonl", ['{"prompt": 1, "answers": ["4"], "tokens": [1, 2]}'], "1 answers but 2"),
        ("a.jsonl", ["[]"], "expected an object"),
        ("a.jsonl", ["{"], "not readable"),
        ("a.jsonl", ['{"prompt": 1, "answers": [null]}'], None),
        ("a.txt", ["x"], "by the file name"),
        ("a.parquet", ["x"], "not readable"),
    ],
)
def test_bad_logs(tmp_path, name, lines, word):
    path = write(tmp_path, name, lines)
    if word is None:
        assert read_answer_log(path)[0].answers == (None,)
        return
    with pytest.raises(InputError, match=word):
        read_answer_log(path)


def test_filters_name_what_is_missing(tmp_path):
    path = write(tmp_path, "a.csv", ["prompt,answer,model", "q,4,m"])
    assert len(read_answer_log(path, only={"model": "m"})) == 1
    with pytest.raises(InputError, match="no rows match"):
        read_answer_log(path, only={"model": "other"})
    with pytest.raises(InputError, match="no column modell"):
        read_answer_log(path, only={"modell": "m"})
    with pytest.raises(InputError, match="cannot read"):
        read_answer_log(tmp_path / "none.csv")


def test_command(tmp_path):
    path = write(tmp_path, "log.jsonl", [
        json.dumps({"prompt": i, "answers": [r"\boxed{4}"] * 9 + [r"\boxed{5}"], "gold": r"\boxed{4}"})
        for i in range(5)
    ])  # fmt: skip
    report = tmp_path / "curve.html"
    arguments = ["calibrate-vote", str(path), "--samples", "20", "--trials", "5"]
    result = CliRunner().invoke(app, [*arguments, "--json", "--report", str(report)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["prompts"] == 5
    assert document["recommended"]["threshold"] in (2, 5, 7, 10, 30, 100)
    assert all(point["tokens"] is None for point in document["points"])
    assert "<svg" in report.read_text(encoding="utf-8")
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(again.stdout) == document
    table = CliRunner().invoke(app, arguments)
    assert "Use B =" in table.stdout


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (["--where", "x"], "--where"), (["--answer", "box"], "did you mean boxed"),
        (["--thresholds", "a"], "--thresholds"), (["--thresholds", "-1"], "thresholds"),
        (["--tolerance", "2"], "tolerance"), (["--report", "/no/such/folder/x.html"], "--report|cannot"),
    ],
)  # fmt: skip
def test_bad_options(tmp_path, extra, word):
    path = write(tmp_path, "a.csv", ["prompt,answer", "q,4"])
    result = CliRunner().invoke(app, ["calibrate-vote", str(path), "--trials", "2", *extra])
    assert isinstance(result.exception, InputError)
    with pytest.raises(InputError, match=word):
        raise result.exception
