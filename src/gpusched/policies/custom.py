"""Policies of one's own: plain functions in a file, named ``path/to/file.py:function``.

A function's leading parameters say what it wants to see, by name; the others are numbers that the
user may set, with defaults. Three kinds of decision::

    def shortest_first(request, engine): ...      # batching: rank of a waiting request, lower first
    def emptiest(replica, request): ...           # routing: score of a candidate, lowest takes it
    def shed(request, fleet, limit=100.0): ...    # admission: seconds to hold; 0 admits, inf rejects

``Batching`` joins a rank with a gate. See ``gpusched.policies.views`` for what the arguments hold.
The simulator compiles a function once; a gateway calls it as it is.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
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

    def __post_init__(self) -> None:
        if self.rank is None and self.admits is None:
            raise InputError("a batching policy needs a rank, a gate (admits), or both")


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


def load(name: str) -> Any:
    """Return the function, or ``Batching``, that ``file.py:name`` or an entry point names.

    A file is read again when it has changed.

    Raises:
        InputError: no such file or name, or what it names fails to load or is no policy.
    """
    if name in _offered():
        try:
            found = _offered()[name].load()
        except Exception as error:
            raise InputError(f"policy {name}: {type(error).__name__}: {error}") from None
    else:
        path, _, attribute = name.rpartition(":")
        file = Path(os.path.expanduser(path)).absolute()
        if not file.is_file():
            raise InputError(f"policy {name}: no file {path}")
        module = _module(file, file.stat().st_mtime_ns)
        if not hasattr(module, attribute):
            offered = [n for n, v in vars(module).items() if _is_policy(v) and n[0] != "_"]
            raise InputError(
                f"policy {name}: {path} has no {attribute!r}; it has {', '.join(offered) or 'none'}"
            )
        found = getattr(module, attribute)
    if not _is_policy(found):
        raise InputError(f"policy {name}: a {type(found).__name__}, not a function")
    return found


def _is_policy(value: Any) -> bool:
    return isinstance(value, Batching) or (callable(value) and not isinstance(value, type))


@lru_cache(maxsize=64)
def _module(file: Path, changed_ns: int) -> ModuleType:
    module = ModuleType(f"gpusched_policy_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    try:
        exec(compile(file.read_text("utf-8"), str(file), "exec"), vars(module))
    except Exception as error:
        raise InputError(f"policy file {file}: {type(error).__name__}: {error}") from None
    return module


def split(text: str) -> tuple[str, list[str]]:
    """Return the name and the settings of ``name+parameter=value+...``; a path may hold a plus."""
    path, colon, rest = text.rpartition(".py:")
    name, *given = rest.split("+")
    return f"{path}{colon}{name}", given


def settings(text: str) -> tuple[str, dict[str, float]]:
    """Return the name and the parameters of ``name+parameter=value+...``.

    Raises:
        InputError: a parameter is not a number.
    """
    name, given = split(text)
    values = {}
    for setting in given:
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
    for key, value in defaults.items():
        if not isinstance(value, int | float):
            raise InputError(f"policy {name}: {key} must be a number by default, got {value!r}")
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
    plain = getattr(function, "py_func", function)
    inner = njit(plain)
    tuple_of: Any = types.BaseTuple.from_types
    seen = [tuple_of(_VIEWS[view][1], _VIEWS[view][0]) for view in wanted]
    arguments = (*seen, *(_NUMBER for _ in parameters))
    try:
        inner.compile(arguments)
    except Exception as error:
        raise InputError(
            f"policy {name}: cannot be compiled ({_reason(error, plain)}); "
            "use numbers, arithmetic, if, loops and math only"
        ) from None
    returned = inner.overloads[arguments].signature.return_type
    if not isinstance(returned, types.Integer | types.Float | types.Boolean):
        raise InputError(f"policy {name}: returns {returned}, where a number is needed")
    flat, views = [], {}
    for view in KINDS[kind]:
        fields = [f"{view}_{i}" for i in range(len(_VIEWS[view][1]))]
        flat += fields
        views[view] = f"{_VIEWS[view][0].__name__}({', '.join(fields)})"
    given = [views[view] for view in wanted] + [f"row[{i}]" for i in range(len(parameters))]
    source = (
        f"def call({', '.join(flat)}, row):\n    try:\n"
        f"        return 1.0 * function({', '.join(given)})\n"
        "    except Exception:\n        return nan\n"
    )
    scope: dict[str, Any] = {t.__name__: t for t, _ in _VIEWS.values()}
    scope |= {"function": inner, "nan": np.nan}
    exec(source, scope)
    return cfunc(signature(kind))(scope["call"])


def _reason(error: Exception, function: Callable[..., Any]) -> str:
    """Return what the compiler stumbles on, and in which line of the user's file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if not line.startswith("Failed in nopython")), "")
    places = re.findall(r'File "(.+)", line (\d+)', str(error))
    own = Path(function.__code__.co_filename).name
    line = next((n for path, n in places if Path(path).name == own), None)
    return f"line {line}: {said}" if line else f"{type(error).__name__}: {said}"


@lru_cache(maxsize=8)
def unused(kind: str) -> Any:
    """Return a native function of a kind for where no user's function is given."""
    count = len(signature(kind).args)
    scope: dict[str, Any] = {}
    exec(f"def unused({', '.join(f'x{i}' for i in range(count))}):\n    return 0.0\n", scope)
    return cfunc(signature(kind))(scope["unused"])
