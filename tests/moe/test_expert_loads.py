import json

import numpy as np
import pytest

from gpusched.errors import InputError
from gpusched.moe.loads import (
    DEEPSEEK_V2_LITE_CONCENTRATION,
    activations,
    check_loads,
    dirichlet_loads,
    fit_dirichlet,
    read_loads,
)


def test_activations_sum_to_top_k_in_every_layer():
    w = activations([[10, 20, 30], [30, 15, 15]], 2)
    assert np.allclose(w.sum(axis=1), 2)
    assert np.allclose(w[0] / w[0].sum(), [1 / 6, 1 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("loads", "unit", "message"),
    [
        ([[1, 2], [1, 9], [1, 2]], "tokens", "layer 1 sums to 10; most layers sum to 3"),
        ([[1, 0.5]], "per_token", "layer 0 sums to 1.5; each layer must sum to top_k = 2"),
        ([[0.5, 0.4]], "share", "layer 0 sums to 0.9; each layer must sum to 1"),
        ([[1, float("nan")]], "tokens", "layer 0, expert 1 has nan"),
        ([[1, -1]], "tokens", "layer 0, expert 1 has -1"),
        ([[1, float("inf")]], "tokens", "layer 0, expert 1 has inf"),
        ([[1, 1], [0, 0]], "tokens", "layer 1 has no load"),
        ([["a"]], "tokens", "must be numbers"),
        ([[1, 2], [1]], "tokens", "rows of one length"),
        (np.zeros((2, 2, 2)), "tokens", "must have shape"),
    ],
)
def test_impossible_loads_are_named(loads, unit, message):
    with pytest.raises(InputError, match="loads: .*" + message.replace(".", r"\.")):
        activations(loads, 2, unit=unit)


def test_reads_tables_and_lists(tmp_path):
    csv = tmp_path / "l.csv"
    csv.write_text("task,layer,expert,tokens\na,1,0,3\na,1,1,4\na,2,0,5\na,2,1,2\nb,1,0,9\n")
    assert read_loads(csv, {"task": "a"}).tolist() == [[3, 4], [5, 2]]
    js = tmp_path / "l.json"
    js.write_text(json.dumps({"weight": [[3, 4], [5, 2]]}))
    assert read_loads(js).tolist() == [[3, 4], [5, 2]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "layer,tokens\n1,2\n", "needs columns layer, expert and tokens"),
        ("l.csv", "layer,expert,tokens\n1,0,x\n", "not a table of loads"),
        ("l.csv", "layer,expert,tokens\n1,0,nan\n", "must be finite"),
        ("l.json", "[[1, 2", "not a table of loads"),
        ("l.json", '{"a": 1}', "as a list of rows"),
        ("l.txt", "1", r"read from \.csv"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_loads(path)


def test_missing_file_and_column(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_loads(tmp_path / "no.csv")
    path = tmp_path / "l.csv"
    path.write_text("layer,expert,tokens\n1,0,1\n")
    with pytest.raises(InputError, match="no column 'task'"):
        read_loads(path, {"task": "law"})
    with pytest.raises(InputError, match="no row"):
        read_loads(path, {"layer": 7})


def test_fit_finds_the_concentration_it_drew_with():
    for a in (0.3, 1.0, 4.0):
        assert fit_dirichlet(dirichlet_loads(400, 64, 6, a)) == pytest.approx(a, rel=0.08)
    assert fit_dirichlet(check_loads([[1, 1, 1]])) == np.inf
    with pytest.raises(InputError, match="concentration"):
        dirichlet_loads(2, 4, 1, 0.0)


def test_fitted_concentrations_are_those_of_the_measured_routes(shared):
    path = shared / "data" / "moe" / "dsv2lite_expert_counts.parquet"
    for task, concentration in DEEPSEEK_V2_LITE_CONCENTRATION.items():
        loads = read_loads(path, {"task": task})
        assert loads.shape == (26, 64)
        assert activations(loads, 6).sum(axis=1) == pytest.approx(6)
        assert fit_dirichlet(loads) == pytest.approx(concentration, abs=0.005)
