"""Names and parameters of batching disciplines: in texts, specs and plans, and what is refused."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.domain.engine import EngineSettings
from gpusched.domain.plan import plan_from
from gpusched.domain.spec import spec_from
from gpusched.errors import InputError
from gpusched.policies.batching import order
from gpusched.policies.batching.discipline import (
    _RANGES,
    DISCIPLINES,
    GROUPED,
    LEAST_PERIOD_S,
    LOOK_AHEAD,
    OPEN,
    Discipline,
    discipline,
)
from gpusched.policies.lengths.predictors import parse_predictor
from gpusched.sim.fleet import Pool
from gpusched.timing.compiled import CompiledTiming

KINDS = {field.name: field.type for field in fields(Discipline)}


def test_names_are_those_promised():
    promised = ["vllm", "prefill-first", "sarathi", "static", "sjf", "mc-sf", "wait", "nested-wait"]
    assert set(promised) <= set(DISCIPLINES)
    for name, plain in DISCIPLINES.items():
        assert discipline(name) is plain or discipline(name) == plain
        assert str(plain) == name
        assert plain.summary


def test_parameters_are_set():
    chosen = discipline("mc-sf+predictor=noisy:0.2+margin=0.1+skip=3+restart=true")
    assert chosen.predictor == "noisy:0.2"
    assert (chosen.margin, chosen.skip, chosen.restart) == (0.1, 3, True)
    assert (chosen.order, chosen.gate) == (order.SHORTEST, LOOK_AHEAD)
    assert discipline("nested-wait+start=strict+segments=8").start == "strict"
    assert discipline("nested-wait").gate == GROUPED
    assert discipline("mlfq+quantum_tokens=64").quantum_tokens == 64
    assert discipline("mlfq+quantum_tokens=64").gate == OPEN


def values_of(key):
    if key == "predictor":
        return st.sampled_from(
            ["oracle", "mean", "noisy:0.5", "over:2", "quantile:0.7", "constant:9"]
        )
    if key == "start":
        return st.sampled_from(["relaxed", "strict"])
    if key == "restart":
        return st.booleans()
    if key == "thresholds":
        return st.sampled_from(["auto", "4", "4/1"])
    low, high = _RANGES[key]
    if KINDS[key] is int:
        return st.integers(int(low), min(int(high), 10**6))
    if key == "reestimate_s":
        low = LEAST_PERIOD_S
    return st.floats(low, high).filter(lambda x: "+" not in str(x))


@st.composite
def choices(draw):
    plain = DISCIPLINES[draw(st.sampled_from(sorted(DISCIPLINES)))]
    chosen = (
        draw(st.lists(st.sampled_from(plain.parameters), unique=True)) if plain.parameters else []
    )
    return plain.name, {key: draw(values_of(key)) for key in chosen}


@given(choices())
def test_text_mapping_and_str_agree(choice):
    name, values = choice
    text = name + "".join(f"+{key}={value}" for key, value in values.items())
    chosen = discipline(text)
    for key, value in values.items():
        assert getattr(chosen, key) == value
    assert discipline(str(chosen)) == chosen
    mapped = EngineSettings.model_validate({"batching": {"name": name, **values}})
    assert discipline(mapped.batching) == chosen


@pytest.mark.parametrize("plain", DISCIPLINES.values(), ids=DISCIPLINES)
def test_every_parameter_can_be_set_and_every_default_is_allowed(plain):
    for key in plain.parameters:
        assert key in KINDS
        default = getattr(plain, key)
        if key in _RANGES:
            assert _RANGES[key][0] <= default <= _RANGES[key][1]
        assert discipline(f"{plain.name}+{key}={default}") == plain
    if plain.predictor is not None:
        assert "predictor" in plain.parameters
        assert parse_predictor(plain.predictor).learns


REFUSED = [
    ("mc-sff", "unknown batching policy 'mc-sff'; did you mean mc-sf"),
    ("fifo-fifo-fifo", "unknown batching policy"),
    ("", "unknown batching policy"),
    ("vllm+margin=0.1", "vllm has no parameter 'margin'; it has none"),
    ("mc-sf+marign=0.1", "mc-sf has no parameter 'marign'; it has predictor, margin"),
    ("mc-sf+margin=1", "margin must be a number from 0 to 0.95, got '1'"),
    ("mc-sf+margin=-0.1", "margin must be"),
    ("mc-sf+margin=nan", "margin must be"),
    ("mc-sf+margin", "margin must be"),
    ("mc-sf+margin=", "margin must be"),
    ("mc-sf+skip=1.5", "skip must be"),
    ("mc-sf+restart=maybe", "restart must be true or false"),
    ("mc-sf+predictor=guess", "unknown length predictor 'guess'"),
    ("mc-sf+predictor=noisy", "expected noisy:NUMBER"),
    ("mc-sf+predictor=noisy:2", "from 0 to 0.99"),
    ("wait+start=soon", "start must be relaxed or strict"),
    ("wait+segments=0", "segments must be"),
    ("wait+hold_s=inf", "hold_s must be"),
    ("wait+thresholds=4/0", "whole numbers above 0"),
    ("wait+thresholds=", "must be auto"),
    ("wait+reestimate_s=1e-9", "reestimate_s must be at least"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[text for text, _ in REFUSED])
def test_what_is_wrong_is_named(text, words):
    with pytest.raises(InputError) as caught:
        discipline(text)
    assert caught.value.exit_code == 2
    assert words in str(caught.value)


PLAN = {
    "gpusched": "plan/1",
    "model": "llama-3.1-8b",
    "weights_dtype": "bf16",
    "cluster": {"nodes": [{"name": "n", "gpu": "h100_sxm"}]},
    "workload": {"profile": "chat", "rate_rps": 1, "duration_s": 10},
    "slo": {"ttft_ms": 500},
}


def engine_of(batching):
    pool = {"name": "e", "nodes": "n", "gpu": "h100_sxm", "replicas": 1}
    plan = plan_from({**PLAN, "pools": [{**pool, "engine": {"batching": batching}}]})
    return plan.pools[0].engine


def test_plans_and_specs_take_texts_and_mappings():
    text = "mc-sf+margin=0.1+restart=true"
    mapping = {"name": "mc-sf", "margin": 0.1, "restart": True}
    assert engine_of(text).batching == engine_of(mapping).batching == text
    spec = {k: v for k, v in PLAN.items() if k not in ("gpusched", "weights_dtype")}
    assert spec_from({**spec, "engine": {"batching": mapping}}).engine.batching == text


def test_files_of_policies_are_relative_to_the_document():
    pool = {"name": "e", "nodes": "n", "gpu": "h100_sxm", "replicas": 1}
    for named in ("my.py:late+patience=3", {"name": "my.py:late", "patience": 3}):
        values = {**PLAN, "pools": [{**pool, "engine": {"batching": named}}]}
        plan = plan_from(values, folder=Path("/plans"))
        assert plan.pools[0].engine.batching == "/plans/my.py:late+patience=3"


ONES, ZEROS = np.ones(2049), np.zeros(2049)
TIMING = CompiledTiming(ONES, ONES, ZEROS, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("role", "batching"),
    [("prefill", "mc-sf"), ("prefill", "mlfq"), ("prefill", "static"), ("decode", "sjf")],
)
def test_split_pools_take_what_works_there(role, batching):
    with pytest.raises(InputError, match="choose"):
        Pool("p", TIMING, 100, role=role, batching=batching)


def test_a_prefill_pool_may_order_its_queue():
    assert Pool("p", TIMING, 100, role="prefill", batching="sjf").batching == "sjf"
