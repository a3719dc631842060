"""The page on policies says what the code does."""

import re
import sys
from pathlib import Path

import pytest

from gpusched.policies.admission.policy import ADMISSION
from gpusched.policies.batching.discipline import _RANGES, DISCIPLINES, discipline
from gpusched.policies.lengths.predictors import _RANGES as PREDICTORS
from gpusched.policies.routing.policy import ROUTING
from gpusched.policies.views import Engine, Request
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate

sys.path.insert(0, str(Path(__file__).parents[1] / "sim"))
from fleets import timing, trace

PAGE = (Path(__file__).parents[2] / "docs/policies.md").read_text(encoding="utf-8")


def table(heading, page=PAGE):
    """Rows of the table under a heading of columns, cells stripped."""
    lines = page.partition(f"| {heading} |")[2].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_every_discipline_is_listed_with_its_parameters():
    listed = []
    for chosen in DISCIPLINES.values():
        parameters = ", ".join(f"`{key}` {getattr(chosen, key)}" for key in chosen.parameters)
        listed.append([f"`{chosen.name}`", chosen.summary, parameters or "none"])
    assert table("name | what it does | parameters and defaults") == listed


def test_every_parameter_is_listed_with_its_range():
    rows = table("parameter | meaning | values")
    listed = {name.strip("`"): values for name, _, values in rows}
    used = {key for chosen in DISCIPLINES.values() for key in chosen.parameters}
    assert set(listed) == used
    for key, (low, high) in _RANGES.items():
        assert listed[key] == f"{low:g} to {high:g}"


OTHERS = (Path(__file__).parents[2] / "docs/routing-and-admission.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "policies"),
    [
        ("routing | takes the replica with | parameters and defaults", ROUTING),
        ("admission | what it does | parameters and defaults", ADMISSION),
    ],
)
def test_every_routing_and_admission_policy_is_listed(heading, policies):
    listed = []
    for chosen in policies.values():
        parameters = ", ".join(f"`{key}` {getattr(chosen, key):g}" for key in chosen.parameters)
        listed.append([f"`{chosen.name}`", chosen.summary, parameters or "none"])
    assert table(heading, OTHERS) == listed


def test_the_pages_own_policies_run(tmp_path):
    code = OTHERS.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "own.py").write_text(code)
    fleet = Fleet(
        (Pool("a", timing(), kv_blocks=400, replicas=2, max_num_seqs=20),),
        routing=f"{tmp_path}/own.py:emptiest",
        admission=f"{tmp_path}/own.py:shed+most_a_replica=6",
    )
    result = simulate(fleet, trace(60, 40.0, 1))
    assert result.rejected.mean() < 0.5
    assert len(set(result.replica.tolist())) == 2


def test_every_predictor_is_listed():
    listed = [
        name.strip("`").partition(":")[0] for name, _ in table("predictor | predicted length")
    ]
    assert listed == list(PREDICTORS)


def test_policies_said_to_predict_do():
    named = {chosen.name for chosen in DISCIPLINES.values() if chosen.predictor is not None}
    assert named == {
        n for n in DISCIPLINES if n == "sjf" or n.startswith(("mc-", "a-")) or n == "wait"
    }


def test_views_are_listed():
    rows = dict(table("view | fields"))
    for name, view in (("request", Request), ("engine", Engine)):
        assert re.findall(r"`(\w+)`", rows[f"`{name}`"]) == list(view._fields)


@pytest.mark.parametrize(
    ("mark", "name"),
    [("own policy", "short_prompts_first+worth=10"), ("own gate", "careful+share=0.3")],
)
def test_the_policies_shown_work(mark, name, tmp_path):
    code = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    (tmp_path / "my_policies.py").write_text(code)
    chosen = discipline(f"{tmp_path}/my_policies.py:{name}")
    assert (chosen.rank is None) == (mark == "own gate")
    assert len(code.splitlines()) <= 12
