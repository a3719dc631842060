"""The compiler's settings for kernels, and where compiled code is kept between runs.

Compiled code lives in the user's cache directory, under a digest of the sources that a kernel is
made of: the package directory may be read-only, and a change in a file must not leave the compiled
code of those that import it in use, nor touch that of the others.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import njit, types
from numba.extending import overload

Function = TypeVar("Function", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parent
_IMPORT = re.compile(rf"^\s*from ({_PACKAGE.name}[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)


def user_cache_dir() -> Path:
    """Return the folder for gpusched's caches, after the platform's convention."""
    if "GPUSCHED_CACHE_DIR" in os.environ:
        return Path(os.environ["GPUSCHED_CACHE_DIR"])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "gpusched"


def _kernel_cache(module: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(sources(module)):
        digest.update(source.read_bytes())
    return str(user_cache_dir() / "kernels" / digest.hexdigest()[:16])


def sources(module: str) -> set[Path]:
    """Return the files of this package that a module is made of: its own and what it imports."""
    found: set[Path] = set()
    left = [module]
    while left:
        path = _file_of(left.pop())
        if path is not None and path not in found:
            found.add(path)
            left += _imports(path)
    return found


def _file_of(module: str) -> Path | None:
    package, *names = module.split(".")
    if package != _PACKAGE.name:
        return None
    path = _PACKAGE.joinpath(*names)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file if file.is_file() else None


@cache
def _imports(path: Path) -> list[str]:
    """Return the names that a file imports from this package, modules or what is in them."""
    names = []
    for module, listed in _IMPORT.findall(path.read_text("utf-8")):
        names += [module, *(f"{module}.{name}" for name in re.findall(r"\w+", listed))]
    return names


def kernel(function: Function) -> Function:
    """Compile a function that other kernels call."""
    return _inner(function, forceinline=True)


def cold_kernel(function: Function) -> Function:
    """Compile a function that other kernels call so rarely that it is better kept out of line."""
    return _inner(function, forceinline=False)


def _inner(function: Function, *, forceinline: bool) -> Function:
    """Functions of the simulator's state are never called from Python; to leave out what would let
    them be saves half of the compiler's time."""
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}
    if function.__code__.co_varnames[:1] == ("s",):
        options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: Function = njit(forceinline=forceinline, **options)(function)
    return compiled


def kernel_where(part: str, otherwise: Function) -> Callable[[Function], Function]:
    """Compile a function of the simulator's state in two forms: as it stands, out of line, where the
    state has this part, and as ``otherwise`` where the part is None.

    A branch on ``s.part is None`` would have both sides compiled, and the part's fields must then
    have types even where there are none.
    """

    def decorate(function: Function) -> Function:
        present = cold_kernel(function)

        def out_of_line(s: Any, *arguments: Any) -> Any:
            return present(s, *arguments)

        def call(s: Any, *arguments: Any) -> Any:
            return (otherwise if getattr(s, part) is None else function)(s, *arguments)

        options: Any = {"forceinline": True, "error_model": "numpy", "nogil": True, "_nrt": False}

        @overload(call, strict=False, jit_options=options)
        def choose(s: Any, *arguments: Any) -> Any:
            absent = isinstance(s.types[s.fields.index(part)], types.NoneType)
            return otherwise if absent else out_of_line

        return call  # type: ignore[return-value]

    return decorate


def entry_kernel(function: Function) -> Function:
    """Compile a function that Python calls, and keep the compiled code for later runs."""
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}
    config: Any = numba.config
    previous = config.CACHE_DIR
    config.CACHE_DIR = _kernel_cache(function.__module__)
    try:
        compiled: Function = njit(cache=True, **options)(function)
    finally:
        config.CACHE_DIR = previous
    return compiled


def is_cached(function: Any) -> bool:
    """Whether the entry kernel's compiled code is already on disk or in memory."""
    if not hasattr(function, "signatures") or function.signatures:
        return True
    folder = Path(function.stats.cache_path)
    return folder.is_dir() and any(folder.glob(f"*{function.py_func.__name__}*.nbc"))


def compiled_for(function: Any, *arguments: Any) -> Callable[..., Any]:
    """Return an entry kernel's code for arguments of these types, to be called many times.

    A call of the kernel itself looks at the types of all arguments first, which takes some
    milliseconds where there are arrays of records.
    """
    if not hasattr(function, "get_overload"):
        return function  # type: ignore[no-any-return]
    type_of: Any = numba.typeof
    types = tuple(type_of(argument) for argument in arguments)
    function.compile(types)
    compiled: Callable[..., Any] = function.get_overload(types)
    return compiled
