"""Policies written as ``name`` or ``name+parameter=value+...``."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from gpusched.errors import InputError, unknown_name

Policy = TypeVar("Policy")


def read_policy(
    kind: str,
    text: str,
    known: Mapping[str, Policy],
    ranges: Mapping[str, tuple[float, float]],
) -> Policy:
    """Return the policy of ``known`` that ``text`` names, with the parameters it sets.

    Policies are dataclasses whose field ``parameters`` names the fields a user may set; ``ranges``
    bounds them.

    Raises:
        InputError: no such policy or parameter, or a value out of range.
    """
    name, *settings = text.split("+")
    if name not in known:
        raise InputError(unknown_name(f"{kind} policy", name, known))
    found: Any = known[name]
    values: dict[str, float] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in found.parameters:
            own = ", ".join(found.parameters) or "none"
            raise InputError(f"{kind} policy {name} has no parameter {key!r}; it has {own}")
        low, high = ranges[key]
        whole = {field.name: field.type for field in fields(found)}[key] is int
        values[key] = read_number(f"{kind} policy {name}: {key}", value, low, high, whole=whole)
    answer: Policy = replace(found, **values)
    return answer


def read_number(what: str, text: str, low: float, high: float, *, whole: bool = False) -> float:
    """Return a number from ``low`` to ``high``.

    Raises:
        InputError: ``text`` is none.
    """
    try:
        number = int(text) if whole else float(text)
        if not low <= number <= high:
            raise ValueError
    except ValueError:
        kind = "whole number" if whole else "number"
        raise InputError(
            f"{what} must be a {kind} from {low:g} to {high:g}, got {text!r}"
        ) from None
    return number
