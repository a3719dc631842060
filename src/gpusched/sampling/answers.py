"""From a model's text to the answer that is voted on."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from gpusched.domain.document import Section
from gpusched.errors import InputError

Kind = Literal["boxed", "choice", "number", "json", "regex", "tool-call", "text"]
Message = Mapping[str, Any]
"""A chat completion's message: ``content`` and perhaps ``tool_calls``."""

_NUMBER = re.compile(
    r"(?:(?<!\w)[-+])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?(?=\D|$)"
)
_CHOICE_SAID = re.compile(
    r"(?:answer|option|choice)\s*(?:is|:)?\s*[*_$({\[]*\\?(?:text|boxed)?\{?\(?([A-Z])\b", re.I
)


class AnswerFormat(Section):
    """How the answer stands in the text.

    ``boxed`` the last ``\\boxed{...}``, ``choice`` a letter, ``number`` the last number, ``json``
    the value at ``path`` of the last JSON value, ``regex`` the last match of ``pattern`` (its first
    group), ``tool-call`` the calls with their arguments, ``text`` all of it.
    """

    kind: Kind = "boxed"
    path: str = ""
    """Of ``json``: keys and list positions separated by dots, such as ``result.0.label``."""
    pattern: str = ""
    """Of ``regex``."""
    choices: str = "ABCD"
    """Of ``choice``: the letters allowed."""

    def extract(self, message: Message) -> str | None:
        """Return the normalised answer of a message; None where there is none.

        Raises:
            InputError: ``pattern`` is not a regular expression.
        """
        if self.kind == "tool-call":
            return _tool_calls(message.get("tool_calls"))
        content = message.get("content")
        if not isinstance(content, str):
            return None
        found = _EXTRACTORS[self.kind](content, self)
        if self.kind in ("json", "choice"):
            return found
        return normalise(found) if found is not None else None


def normalise(answer: str) -> str | None:
    """Return one spelling of equal answers; None if nothing is left.

    Degree and dollar signs, spaces, ``\\left``, ``\\right``, ``\\text{}`` and a final full stop go,
    ``\\dfrac`` is ``\\frac``, numbers lose separators and idle zeros: ``1,234.50`` is ``1234.5``.
    """
    text = answer.strip()
    for pattern, plain in (
        (r"\\(?:left|right|displaystyle|,|!|;|quad)(?![a-zA-Z])", ""),
        (r"\\[dt]frac", r"\\frac"),
        (r"\^\{?\\circ\}?|°|\\degree", ""),
        (r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1"),
        (r"\\\(|\\\)|\\\[|\\\]|\$|\\%", ""),
        (r"\s+", " "),
    ):
        text = re.sub(pattern, plain, text)
    text = text.strip().rstrip(".").strip()
    if "\\" in text or re.fullmatch(r"[\d\s.,+\-*/^=(){}\[\]]*", text):
        text = text.replace(" ", "")
    if re.fullmatch(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,2})?", text):
        text = _plain_number(text)
    return text or None


def _plain_number(text: str) -> str:
    try:
        value = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    if not value:
        return "0"
    return format(value.normalize(), "f")


def _boxed(text: str, _: AnswerFormat) -> str | None:
    """The inside of the last box whose braces close."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if depth == 0:
                return text[start:at]
    return None


def _choice(text: str, form: AnswerFormat) -> str | None:
    """A boxed letter, else the last one called the answer, else the last that stands alone."""
    allowed = form.choices.upper()
    box = _boxed(text, form)
    if box is not None:
        letters = re.findall(r"(?<![A-Za-z\\])([A-Za-z])(?![A-Za-z])", normalise(box) or "")
        if letters and letters[0].upper() in allowed:
            return str(letters[0].upper())
    said = [letter.upper() for letter in _CHOICE_SAID.findall(text)]
    alone = re.findall(rf"(?<![A-Za-z'])\(?([{re.escape(allowed)}])(?![A-Za-z'])", text)
    return next(
        (letter for letter in (*reversed(said), *reversed(alone)) if letter in allowed), None
    )


def _number(text: str, form: AnswerFormat) -> str | None:
    box = _boxed(text, form)
    found = [match for match in _NUMBER.findall(box if box else text) if re.search(r"\d", match)]
    return found[-1] if found else None


def _json(text: str, form: AnswerFormat) -> str | None:
    """The value at the path in the last JSON value of the text, as compact JSON with sorted keys."""
    decoder = json.JSONDecoder()
    value, at, found = None, 0, False
    while (match := re.compile(r"[{\[]").search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, match.start())
            found = True
        except (ValueError, RecursionError):
            at = match.start() + 1
    if not found:
        return None
    for part in filter(None, form.path.split(".")):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.lstrip("-").isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    if isinstance(value, str):
        return normalise(value)
    return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))


def _regex(text: str, form: AnswerFormat) -> str | None:
    try:
        matches = list(re.finditer(form.pattern, text, re.M))
    except re.error as error:
        raise InputError(f"answer.pattern: not a regular expression ({error})") from None
    if not form.pattern or not matches:
        return None
    last = matches[-1]
    return last.group(1) if last.groups() else last.group(0)


def _tool_calls(calls: Any) -> str | None:
    """Names and arguments, arguments compared as JSON values."""
    if not isinstance(calls, Sequence) or not calls:
        return None
    said = []
    for call in calls:
        function = call.get("function", {}) if isinstance(call, Mapping) else {}
        arguments = function.get("arguments", "")
        try:
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            return None
        said.append([function.get("name"), arguments])
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


_EXTRACTORS: dict[str, Callable[[str, AnswerFormat], str | None]] = {
    "boxed": _boxed,
    "choice": _choice,
    "number": _number,
    "json": _json,
    "regex": _regex,
    "text": lambda text, _: text,
}
