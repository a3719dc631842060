"""What counts as the same answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpusched.errors import InputError
from gpusched.sampling.answers import AnswerFormat, normalise


@pytest.mark.parametrize(
    ("kind", "text", "options", "answer"),
    [
        ("boxed", r"so \boxed{1} or $\boxed{\dfrac{3}{4}}$.", {}, r"\frac{3}{4}"),
        ("boxed", r"\boxed{90^\circ}", {}, "90"),
        ("boxed", r"\boxed{\text{yes} }", {}, "yes"),
        ("boxed", r"\boxed{1,234.50}", {}, "1234.5"),
        ("boxed", r"\boxed{unclosed", {}, None),
        ("boxed", r"\boxed{}", {}, None),
        ("choice", "The answer is (C).", {}, "C"),
        ("choice", r"\boxed{\text{B}}", {}, "B"),
        ("choice", "A cat sat. Answer: **D**", {}, "D"),
        ("choice", "(E)", {}, None),
        ("choice", "(E)", {"choices": "ABCDE"}, "E"),
        ("number", "it costs $1,200 in 2 months, -4.50 each", {}, "-4.5"),
        ("number", "2024-05", {}, "5"),
        ("number", r"7 \boxed{12} of 9", {}, "12"),
        ("number", "1e3", {}, "1000"),
        ("number", "none", {}, None),
        ("json", 'so {"a": {"b": [1, {"c": "X "}]}} end', {"path": "a.b.1.c"}, "X"),
        ("json", '{"a": {"z": 1, "b": 2}}', {"path": "a"}, '{"b":2,"z":1}'),
        ("json", "{bad", {"path": "a"}, None),
        ("json", '{"a": 1}', {"path": "b"}, None),
        ("regex", "x=1, x=22", {"pattern": r"x=(\d+)"}, "22"),
        ("regex", "none", {"pattern": r"x=(\d+)"}, None),
        ("text", "  Hello   world. ", {}, "Hello world"),
    ],
)
def test_extraction(kind, text, options, answer):
    assert AnswerFormat(kind=kind, **options).extract({"content": text}) == answer


def test_tool_calls_compare_arguments_as_values():
    form = AnswerFormat(kind="tool-call")

    def call(arguments):
        return {
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
        }

    assert form.extract(call('{"b": 1, "a": 2}')) == form.extract(call('{"a":2,"b":1}'))
    assert form.extract(call('{"a": 3}')) != form.extract(call('{"a":2}'))
    assert form.extract(call("{broken")) is None
    assert form.extract({"content": "text"}) is None


def test_no_content():
    assert AnswerFormat().extract({"content": None}) is None


def test_bad_pattern():
    with pytest.raises(InputError, match="pattern"):
        AnswerFormat(kind="regex", pattern="(").extract({"content": "x"})


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert once is None or normalise(once) == once


@given(st.text(max_size=60), st.sampled_from(["boxed", "choice", "number", "json", "text"]))
def test_any_text_is_read(text, kind):
    answer = AnswerFormat(kind=kind).extract({"content": text})
    assert answer is None or answer
