import hashlib
import json

import yaml
from typer.testing import CliRunner

from gpusched.cli.main import app
from gpusched.domain.gateway import ClientKey


def test_the_lines_let_the_key_in():
    done = CliRunner().invoke(app, ["serve-key", 'bob: "x" #'])
    assert done.exit_code == 0
    key, _, rest = done.stdout.partition("\n")
    [entry] = yaml.safe_load(rest)["keys"]
    assert ClientKey.model_validate(entry).name == 'bob: "x" #'
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()


def test_json():
    done = CliRunner().invoke(app, ["serve-key", "bob", "--json"])
    document = json.loads(done.stdout)
    assert document["sha256"] == hashlib.sha256(document["key"].encode()).hexdigest()
    assert document["name"] == "bob"


def test_a_name_that_is_too_long():
    done = CliRunner().invoke(app, ["serve-key", "x" * 300])
    assert "serve-key: name" in str(done.exception)
    assert "200" in str(done.exception)
