"""How often a model's experts are chosen: measured counts, checks, and a generator fitted to them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]
Unit = Literal["tokens", "per_token", "share"]

SUM_TOLERANCE = 0.01
"""By which sums of a layer's loads may differ: measurements drop a token now and then."""
DEEPSEEK_V2_LITE_CONCENTRATION = {
    "intent": 1.535,
    "law": 2.483,
    "summary": 1.693,
    "translation": 0.688,
}
"""``fit_dirichlet`` of 26 layers of 64 experts on four tasks (ESFT's routing statistics)."""


def check_loads(loads: ArrayLike, *, name: str = "loads") -> Floats:
    """Return loads as an array of shape (layers, experts).

    Raises:
        InputError: another shape, a nan, an infinity, a negative figure, or a layer without load.
    """
    try:
        array = np.asarray(loads, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}: must be numbers, one row a layer, rows of one length") from None
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2 or not array.size:
        raise InputError(f"{name}: must have shape (layers, experts), got {array.shape}")
    wrong = ~np.isfinite(array) | (array < 0)
    if wrong.any():
        layer, expert = (int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{name}: must be finite and at least 0; layer {layer}, expert {expert} "
            f"has {array[layer, expert]:g}"
        )
    empty = np.flatnonzero(array.sum(axis=1) <= 0)
    if len(empty):
        raise InputError(f"{name}: layer {int(empty[0])} has no load at all")
    return array


def activations(
    loads: ArrayLike, top_k: float, *, unit: Unit = "tokens", name: str = "loads"
) -> Floats:
    """Return activations of each expert by one token, summing to ``top_k`` in every layer.

    ``unit`` says what each layer's loads sum to: ``tokens`` to the same count in every layer, as
    every token passes every layer; ``per_token`` to ``top_k``; ``share`` to 1.

    Raises:
        InputError: impossible loads, or sums that contradict ``unit``.
    """
    array = check_loads(loads, name=name)
    sums = array.sum(axis=1)
    expected = {"tokens": float(np.median(sums)), "per_token": top_k, "share": 1.0}[unit]
    off = np.abs(sums / expected - 1.0)
    if off.max() > SUM_TOLERANCE:
        layer = int(off.argmax())
        what = {
            "tokens": f"most layers sum to {expected:g}, and every token passes every layer",
            "per_token": f"each layer must sum to top_k = {top_k:g}",
            "share": "each layer must sum to 1",
        }[unit]
        raise InputError(f"{name}: layer {layer} sums to {sums[layer]:g}; {what}")
    if array.shape[1] < top_k:
        raise InputError(f"top_k: {top_k:g} exceeds the {array.shape[1]} experts of {name}")
    return np.asarray(array * (top_k / sums)[:, None], np.float64)


def read_loads(path: str | Path, where: Mapping[str, Any] | None = None) -> Floats:
    """Return the loads in a file, shape (layers, experts).

    A ``.csv`` or ``.parquet`` table has columns ``layer``, ``expert`` and ``tokens`` (or ``load``);
    rows of the same layer and expert add up, and ``where`` keeps the rows with these values in
    other columns. Layers are those that occur, in order. A ``.json`` file holds the rows as a list,
    or under ``weight`` or ``loads``.

    Raises:
        InputError: the file cannot be read or does not hold loads.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            document = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(document, dict):
                document = document.get("weight", document.get("loads"))
            if not isinstance(document, list):
                raise InputError(f"{path}: needs loads as a list of rows, or under weight or loads")
            return check_loads(document, name=str(path))
        if path.suffix not in (".csv", ".parquet"):
            raise InputError(f"{path}: loads are read from .csv, .parquet or .json")
        return _from_table(_columns(path), path, where or {})
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{path}: not a table of loads ({error})") from None


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        table = csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a table ({str(error).splitlines()[0]})") from None
    return {name: np.asarray(table[name].to_pylist()) for name in table.column_names}


def _from_table(columns: dict[str, NDArray[Any]], path: Path, where: Mapping[str, Any]) -> Floats:
    weight = next((name for name in ("tokens", "load") if name in columns), None)
    if weight is None or "layer" not in columns or "expert" not in columns:
        raise InputError(
            f"{path}: needs columns layer, expert and tokens (or load), has " + ", ".join(columns)
        )
    keep = np.ones(len(columns["layer"]), bool)
    for name, value in where.items():
        if name not in columns:
            raise InputError(f"{path}: no column {name!r}; it has {', '.join(columns)}")
        keep &= columns[name] == value
    if not keep.any():
        raise InputError(f"{path}: no row with {dict(where)}")
    layer, expert = (columns[name][keep].astype(np.int64) for name in ("layer", "expert"))
    if expert.min() < 0 or expert.max() > 65_535:
        raise InputError(f"{path}: expert must lie in 0 to 65535")
    layers, row = np.unique(layer, return_inverse=True)
    loads = np.zeros((len(layers), int(expert.max()) + 1))
    np.add.at(loads, (row, expert), columns[weight][keep].astype(np.float64))
    return check_loads(loads, name=str(path))


def dirichlet_loads(
    layers: int, experts: int, top_k: float, concentration: float, seed: int = 0
) -> Floats:
    """Return random activations per token: shares of each layer drawn from a symmetric Dirichlet
    distribution, more skewed the smaller ``concentration``.

    Raises:
        InputError: ``concentration`` is not a positive number.
    """
    if not 0 < concentration < np.inf:
        raise InputError(f"concentration: must be a positive number, got {concentration:g}")
    draws = np.random.default_rng(seed).gamma(concentration, size=(layers, experts))
    draws = np.maximum(draws, np.finfo(np.float64).tiny)
    return np.asarray(draws / draws.sum(axis=1, keepdims=True) * top_k, np.float64)


def fit_dirichlet(loads: ArrayLike) -> float:
    """Return the concentration of the symmetric Dirichlet distribution whose shares vary as the
    loads do within layers (moments): with E experts, CV^2 = (E - 1) / (1 + E a)."""
    array = check_loads(loads)
    shares = array / array.sum(axis=1, keepdims=True)
    experts = array.shape[1]
    variation = float((shares.var(axis=1) * experts**2).mean())
    if variation <= 0:
        return np.inf
    return float(max(((experts - 1) / variation - 1) / experts, 1e-6))
