"""Tables of judge scores: how good each model's answer to each sampled request is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a sample."""

    values: Floats
    """Shape (requests, models)."""
    models: tuple[str, ...]

    def for_requests(self, requests: int, *, seed: int = 0) -> Floats:
        """Return scores for a trace's requests, drawn from the sample, shape (requests, models).

        Every row of the sample is drawn equally often, give or take one, so that shares are the
        sample's own.
        """
        random = np.random.default_rng([seed, 7])
        whole, rest = divmod(requests, len(self.values))
        rows = np.concatenate(
            [
                np.tile(np.arange(len(self.values)), whole),
                random.choice(len(self.values), rest, replace=False),
            ]
        )
        return np.asarray(self.values[random.permutation(rows)])


def read_scores(path: str | Path, models: Sequence[str]) -> Scores:
    """Return the columns of a CSV or parquet table that carry the models' names.

    Raises:
        InputError: the file cannot be read, lacks a model, or holds what is no number.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    path = Path(path)
    try:
        table = parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the scores ({error.strerror or error})") from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: neither CSV nor parquet ({error})") from None
    columns = []
    for model in models:
        if model not in table.column_names:
            raise InputError(
                f"{path}: no column {model!r}; the models need a column each, the file has "
                + ", ".join(table.column_names[:12])
            )
        try:
            column = table.column(model).cast(pa.float64()).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(f"{path}: column {model!r} holds what is no number") from None
        bad = np.flatnonzero(~np.isfinite(column))
        if len(bad):
            raise InputError(f"{path}: column {model!r}, row {bad[0] + 1} has no score")
        columns.append(column)
    if not len(table):
        raise InputError(f"{path}: no rows; give the scores of some sampled requests")
    return Scores(np.stack(columns, axis=1), tuple(models))
