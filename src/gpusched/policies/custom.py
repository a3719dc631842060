"""Policies of one's own: plain functions in a file, named ``path/to/file.py:function``.

A function's leading parameters say what it wants to see, by name; the others are numbers that the
user may set, with defaults. Three kinds of decision::

    def shortest_first(request, engine): ...      # batching: rank of a waiting request, lower first
    def emptiest(replica, request): ...           # routing: score of a candidate, lowest takes it
    def shed(request, fleet, limit=100.0): ...    # admission: seconds to hold; 0 admits, inf rejects

``Batching`` joins a rank with a gate. See ``gpusched.policies.views`` for what the arguments hold.
The simulator compiles a function once; a gateway calls it as it is.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, njit, types

from gpusched.errors import InputError
from gpusched.policies.views import Engine, Fleet, Replica, Request

ENTRY_POINTS = "gpusched.policies"
"""Group under which packages offer policies."""

MAX_PARAMETERS = 8

_NUMBER, _COUNT, _ROW = types.float64, types.int64, types.float64[::1]
_REQUEST = (_NUMBER, _COUNT, _COUNT, _COUNT, _COUNT)
_VIEWS: dict[str, tuple[type, tuple[Any, ...]]] = {
    "request": (Request, _REQUEST),
    "engine": (Engine, (_NUMBER, _COUNT, _COUNT, _COUNT, _COUNT)),
    "replica": (Replica, (_COUNT, _COUNT, _COUNT, _COUNT)),
    "fleet": (Fleet, (_NUMBER, _COUNT, _COUNT, _COUNT)),
}
KINDS = {
    "batching": ("request", "engine"),
    "routing": ("replica", "request"),
    "admission": ("request", "fleet"),
}
"""What the functions of each kind of decision may ask to see."""


@dataclass(frozen=True, slots=True)
class Batching:
    """A batching policy of one's own."""

    rank: Callable[..., float] | None = None
    """Rank of a waiting request, lower first; first come first served if not given."""
    admits: Callable[..., bool] | None = None
    """Whether the first waiting request may start now, when its blocks are free."""
    predictor: str = "quantile:0.5"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A user's function in the form that the kernels call."""

    name: str
    function: Callable[..., Any]
    views: tuple[str, ...]
    """What it asks to see, in its order."""
    parameters: tuple[float, ...]
    native: Any
    """The C callback; see ``signature``."""

    def row(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Parameters as the kernels take them."""
        values = np.zeros(MAX_PARAMETERS)
        values[: len(self.parameters)] = self.parameters
        return values


def signature(kind: str) -> Any:
    """Return the native signature of the functions of a kind: all views' fields, parameters."""
    flat = [field for view in KINDS[kind] for field in _VIEWS[view][1]]
    return types.float64(*flat, _ROW)


def is_custom(name: str) -> bool:
    """Whether a policy's name is that of a user's function."""
    return ".py:" in name or name.partition("+")[0] in _offered()


@lru_cache(maxsize=1)
def _offered() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


@lru_cache(maxsize=64)
def load(name: str) -> Any:
    """Return the object that ``file.py:name`` or an entry point names.

    Raises:
        InputError: no such file or name, or the file fails when it runs.
    """
    if name in _offered():
        return _offered()[name].load()
    path, _, attribute = name.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"policy {name}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"gpusched_policy_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"policy {name}: {path} fails: {type(error).__name__}: {error}") from None
    if not hasattr(module, attribute):
        functions = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise InputError(
            f"policy {name}: {path} has no {attribute!r}; it has {', '.join(functions) or 'none'}"
        )
    return getattr(module, attribute)


def settings(text: str) -> tuple[str, dict[str, float]]:
    """Return the name and the parameters of ``name+parameter=value+...``.

    Raises:
        InputError: a parameter is not a number.
    """
    name, *rest = text.split("+")
    values = {}
    for setting in rest:
        key, _, value = setting.partition("=")
        try:
            values[key] = float(value)
        except ValueError:
            raise InputError(f"policy {name}: {key} must be a number, got {value!r}") from None
    return name, values


def compiled_policy(text: str, kind: str) -> Compiled:
    """Return the function that ``file.py:function+parameter=value+...`` names, compiled.

    Raises:
        InputError: there is none, a parameter is unknown, or it cannot be compiled.
    """
    name, values = settings(text)
    return compile_function(load(name), kind, name, tuple(values.items()))


@lru_cache(maxsize=64)
def compile_function(
    function: Callable[..., Any], kind: str, name: str, values: tuple[tuple[str, float], ...] = ()
) -> Compiled:
    """Return a user's function compiled for the kernels.

    A call that raises or gives no number gives nan there.

    Raises:
        InputError: its parameters are not those of its kind, or it cannot be compiled.
    """
    allowed = KINDS[kind]
    if not callable(function):
        raise InputError(f"policy {name}: not a function")
    wanted: list[str] = []
    defaults: dict[str, float] = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if key in allowed and not defaults:
            wanted.append(key)
        elif parameter.default is inspect.Parameter.empty:
            raise InputError(
                f"policy {name}: parameter {key!r}: a {kind} policy takes {' and '.join(allowed)} "
                "first; others need a number as default"
            )
        else:
            defaults[key] = parameter.default
    for key in dict(values):
        if key not in defaults:
            known = ", ".join(defaults) or "none"
            raise InputError(f"policy {name} has no parameter {key!r}; it has {known}")
    parameters = tuple(float(v) for v in {**defaults, **dict(values)}.values())
    if len(parameters) > MAX_PARAMETERS:
        raise InputError(f"policy {name}: at most {MAX_PARAMETERS} parameters")
    return Compiled(
        name, function, tuple(wanted), parameters, _native(function, kind, name, wanted, parameters)
    )


def _native(
    function: Callable[..., Any],
    kind: str,
    name: str,
    wanted: list[str],
    parameters: tuple[float, ...],
) -> Any:
    flat, views = [], {}
    for view in KINDS[kind]:
        fields = [f"{view}_{i}" for i in range(len(_VIEWS[view][1]))]
        flat += fields
        views[view] = f"{_VIEWS[view][0].__name__}({', '.join(fields)})"
    given = [views[view] for view in wanted] + [f"row[{i}]" for i in range(len(parameters))]
    source = (
        f"def call({', '.join(flat)}, row):\n    try:\n"
        f"        return float(function({', '.join(given)}))\n"
        "    except Exception:\n        return nan\n"
    )
    scope: dict[str, Any] = {t.__name__: t for t, _ in _VIEWS.values()}
    scope |= {"function": njit(function), "nan": np.nan}
    exec(source, scope)
    try:
        return cfunc(signature(kind))(scope["call"])
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            f"policy {name}: cannot be compiled ({type(error).__name__}: {reason.strip()}); "
            "use numbers, arithmetic, if, loops and math only"
        ) from None


@lru_cache(maxsize=8)
def unused(kind: str) -> Any:
    """Return a native function of a kind for where no user's function is given."""
    count = len(signature(kind).args)
    scope: dict[str, Any] = {}
    exec(f"def unused({', '.join(f'x{i}' for i in range(count))}):\n    return 0.0\n", scope)
    return cfunc(signature(kind))(scope["unused"])
