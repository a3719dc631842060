"""``gpusched place experts`` as its users run it."""

import json
import subprocess
import sys

import pytest
import yaml

SPEC = {
    "layers": 4,
    "experts": 16,
    "top_k": 2,
    "topology": {"kind": "leaf-spine", "leaves": 2, "servers_per_leaf": 2},
    "gpus_per_server": 2,
    "experts_per_layer": 6,
    "experts_per_server": 17,
    "loads": {"concentration": 0.6},
}


def place(path, *arguments, code=0):
    command = [sys.executable, "-m", "gpusched.cli.main", "place", "experts", str(path)]
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done


def write(folder, **changes):
    path = folder / "experts.yaml"
    values = {key: value for key, value in (SPEC | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(values))
    return path


def test_answer_document_table_and_page(tmp_path):
    path = write(tmp_path)
    answer = json.loads(place(path, "--json", "--report", tmp_path / "r.html").stdout)
    assert answer["hops_per_token"] == pytest.approx(answer["bound"])
    names = [row["name"] for row in answer["alternatives"]]
    assert names[0] == "fewest hops"
    assert "round-robin" in names
    assert all(
        row["hops_per_token"] >= answer["hops_per_token"] - 1e-9
        for row in answer["alternatives"]
        if not row["name"].startswith("EPLB")
    )
    assert "<svg" in (tmp_path / "r.html").read_text()
    again = json.loads(place(path, "--json").stdout)
    again.pop("seconds"), answer.pop("seconds")
    assert again == answer
    assert "hops per token" in place(path, "-o", tmp_path / "p.csv").stdout
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0].replace('"', "") == "layer,expert,server,gpu,activations_per_token"
    assert len(lines) == 65


def test_a_placement_can_be_changed_little_by_little(tmp_path):
    place(write(tmp_path), "-o", tmp_path / "old.json")
    path = write(tmp_path, previous="old.json", move_hops=0.01)
    same = json.loads(place(path, "--json").stdout)
    assert same["moved"] == 0
    other = json.loads(place(path, "--json", "--seed", "3").stdout)
    assert 0 < other["moved"] < 64


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"experts_per_server": 15}, 3, "infeasible: 64 experts of 4 layers"),
        ({"experts_per_layer": 3}, 3, "infeasible: layer 0 has 16 experts"),
        ({"experts_per_layer": [4, 4]}, 2, "experts_per_layer: needs one figure or 4"),
        ({"model": "deepseek-v3"}, 2, "give either model, or all of layers"),
        ({"top_k": 20}, 2, "top_k: 20 exceeds the 16 experts"),
        ({"layers": None}, 2, "give either model, or all of layers"),
        ({"top": 2}, 2, "top: unknown key"),
        ({"loads": {"file": "no.csv"}}, 2, "no.csv: cannot read the file"),
        ({"loads": {}}, 2, "give one of file, concentration and uniform"),
        ({"loads": {"concentration": -1}}, 2, "loads.concentration"),
        ({"topology": {"kind": "ring"}}, 2, "topology.kind: must be"),
        ({"topology": {"removed_links": 2}}, 2, "topology.removed_links"),
        ({"previous": "experts.yaml"}, 2, "not a placement written by"),
        ({"hosts": [0, 1]}, 2, "hosts: needs one server for each of 4 layers"),
    ],
)
def test_bad_specs(tmp_path, changes, code, message):
    done = place(write(tmp_path, **changes), code=code)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_measured_loads_that_do_not_sum(tmp_path):
    rows = [(layer, e, 10 + (layer == 2)) for layer in range(4) for e in range(16)]
    text = "layer,expert,tokens\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    (tmp_path / "loads.csv").write_text(text)
    done = place(write(tmp_path, loads={"file": "loads.csv"}), code=2)
    assert "loads.file: layer 2 sums to 176; most layers sum to 160" in done.stderr


def test_named_links_and_uniform_loads(tmp_path):
    topology = {
        "kind": "links",
        "servers": ["a", "b", "c", "d"],
        "links": [["a", "x"], ["b", "x"], ["c", "y"], ["d", "y"], ["x", "y"]],
    }
    path = write(
        tmp_path, topology=topology, loads={"uniform": True}, hosts="all", replicas=2,
        experts_per_server=None,
    )  # fmt: skip
    answer = json.loads(place(path, "--json").stdout)
    assert len(answer["servers"][0]) == 18


def test_server_loads_can_be_bounded(tmp_path):
    path = write(tmp_path, replicas=8, server_load_ratio=1.5, experts_per_server=None)
    answer = json.loads(place(path, "--json").stdout)
    even, best, *_ = answer["alternatives"]
    assert (even["name"], best["name"]) == ("servers within 1.5 of the mean", "fewest hops")
    assert even["hops_per_token"] >= best["hops_per_token"]
    assert answer["hops_per_token"] == even["hops_per_token"]
