"""Requests drawn from rates by time window: one's own table, or the client rates of ServeGen.

Production traces of weeks are published as rates (alibaba/ServeGen), not as requests. Requests of a
window are Poisson at its rate; of many clients each sends a few, so that bursts of single clients
average out, the more so where ``rate_scale`` keeps one request in many.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpusched.errors import InputError, unknown_name
from gpusched.traces.profiles import draw, load_profile, paired_shares
from gpusched.traces.read import load_table
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]
LEVELS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
QUANTILES = ("min", "p01", "p05", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "max")
LENGTH_WINDOW_S = 6 * 3600.0


class Rates(NamedTuple):
    """Rates by window and client."""

    start_s: Floats
    """Starts of the windows, evenly spaced, shape (windows,)."""
    clients: NDArray[np.int64]
    """Names, shape (clients,)."""
    rate_rps: Floats
    """Shape (windows, clients); nan in windows that the table leaves out for all clients."""

    @property
    def window_s(self) -> float:
        """Length of a window."""
        return float(self.start_s[1] - self.start_s[0])


def read_rates(path: Path, group: str | None = None) -> Rates:
    """Read a table with ``t_s`` and ``rate_rps``, with ``client`` and ``model`` where there are
    several; ``group`` picks the model.

    Raises:
        InputError: a column is missing, the model is unknown, or windows are not evenly spaced.
    """
    table = load_table(path)
    for column in ("t_s", "rate_rps"):
        if column not in table.column_names:
            raise InputError(
                f"{path}: has no column {column}; a table of rates has t_s (start of a window, s) "
                "and rate_rps (requests a second)"
            )
    table = _of_group(path, table, group)
    at_s = np.asarray(table["t_s"].to_numpy(zero_copy_only=False), np.float64)
    rate = np.asarray(table["rate_rps"].to_numpy(zero_copy_only=False), np.float64)
    client = np.zeros(len(at_s), np.int64)
    if "client" in table.column_names:
        client = np.asarray(table["client"].to_numpy(zero_copy_only=False), np.int64)
    if not np.isfinite(rate).all() or (rate < 0).any():
        row = int(np.flatnonzero(~(rate >= 0))[0])
        raise InputError(f"{path}, row {row + 1}: rate_rps is {rate[row]}, expected 0 or more")
    starts = np.unique(at_s)
    if len(starts) < 2:
        raise InputError(f"{path}: needs two windows at least, has {len(starts)}")
    step = float(np.diff(starts).min())
    place = (at_s - starts[0]) / step
    if np.abs(place - np.rint(place)).max() > 1e-6:
        raise InputError(f"{path}: t_s is not evenly spaced (shortest step {step:g} s)")
    names, which = np.unique(client, return_inverse=True)
    windows = int(np.rint(place.max())) + 1
    rates = np.zeros((windows, len(names)))
    np.add.at(rates, (np.rint(place).astype(np.int64), which), rate)
    rates[~np.isin(np.arange(windows), np.rint(place).astype(np.int64))] = np.nan
    return Rates(starts[0] + step * np.arange(windows), names, rates)


def trace_from_rates(
    path: Path,
    *,
    group: str | None = None,
    lengths: Path | None = None,
    profile: str = "chat",
    rate_scale: float = 1.0,
    shift_s: float = 0.0,
    end_s: float | None = None,
    seed: int = 0,
) -> Trace:
    """Return requests at the rates of a table, with lengths by client of a table in ServeGen's form,
    or of a profile.

    Windows that are missing take the rates of a day before (or after); those from ``end_s`` on are left
    out. ``shift_s`` turns the days round, as a region further west sees them: its rates are those
    of ``shift_s`` earlier.

    Raises:
        InputError: see ``read_rates``; or a table of lengths does not fit.
    """
    rates = read_rates(path, group)
    rng = np.random.default_rng([seed, 2])
    rate, filled = _without_gaps(rates)
    notes = []
    if filled:
        notes.append(
            f"{filled} of {len(rate)} windows are missing; taken from a day before or after"
        )
    rate = np.roll(rate, round(shift_s / rates.window_s), axis=0) * rate_scale
    if end_s is not None:
        rate = rate[: max(int(np.ceil(end_s / rates.window_s)), 1)]
    counts = rng.poisson(rate * rates.window_s)
    window, client = np.nonzero(counts)
    number = counts[window, client]
    window, client = np.repeat(window, number), np.repeat(client, number)
    if not len(window):
        raise InputError(f"{path}: nothing arrives at rate_scale {rate_scale:g}")
    arrival_s = (window + rng.random(len(window))) * rates.window_s
    order = np.argsort(arrival_s, kind="stable")
    arrival_s, client = arrival_s[order], client[order]
    if lengths is None:
        shape = load_profile(profile)
        first, second = paired_shares(rng, len(arrival_s), shape.correlation)
        prompt, output = draw(shape.prompt_tokens, first), draw(shape.output_tokens, second)
    else:
        at_s = rates.start_s[0] + arrival_s
        prompt, output, missing = _lengths_of(lengths, group, rates.clients[client], at_s, rng)
        if missing:
            notes.append(f"{missing} clients have no lengths; those of the next client are taken")
    return Trace(
        arrival_s,
        np.maximum(np.rint(prompt), 1).astype(np.int32),
        np.maximum(np.rint(output), 1).astype(np.int32),
        name=group or path.stem,
        notes=tuple(notes),
    )


def _of_group(path: Path, table: pa.Table, group: str | None) -> pa.Table:
    if "model" not in table.column_names:
        return table
    names = table["model"].cast(pa.string())
    known = [name for name in pc.unique(names).to_pylist() if name is not None]
    if group is None and len(known) == 1:
        return table
    if group is None:
        raise InputError(f"{path}: has rates of {', '.join(known)}; say which with group")
    if group not in known:
        raise InputError(f"{path}: {unknown_name('group', group, known)}")
    return table.filter(pc.equal(names, group))


def _without_gaps(rates: Rates) -> tuple[Floats, int]:
    """Fill missing windows from a day before, or after; else by the mean."""
    rate = rates.rate_rps.copy()
    day = max(round(86_400 / rates.window_s), 1)
    missing = np.flatnonzero(np.isnan(rate).all(axis=1))
    mean = np.nanmean(rate, axis=0)
    for at in missing:
        around = [i for i in (at - day, at + day) if 0 <= i < len(rate)]
        known = [i for i in around if np.isfinite(rate[i]).all()]
        rate[at] = rate[known[0]] if known else mean
    return rate, len(missing)


def _lengths_of(
    path: Path, group: str | None, client: NDArray[np.int64], at_s: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats, int]:
    """Draw lengths from each client's quantiles of the six hours."""
    table = _of_group(path, load_table(path), group)
    for column in ("client", "t_s", "field", *QUANTILES):
        if column not in table.column_names:
            raise InputError(f"{path}: has no column {column}")
    fields = table["field"].cast(pa.string())
    window = np.floor(at_s / LENGTH_WINDOW_S).astype(np.int64)
    found, missing = [], 0
    for field in ("input_tokens", "output_tokens"):
        own = table.filter(pc.equal(fields, field))
        if not len(own):
            raise InputError(f"{path}: has no rows of field {field}")
        who = np.asarray(own["client"].to_numpy(zero_copy_only=False), np.int64)
        when = np.asarray(own["t_s"].to_numpy(zero_copy_only=False), np.float64) // LENGTH_WINDOW_S
        values = np.stack([own[q].to_numpy(zero_copy_only=False) for q in QUANTILES], axis=1)
        values = np.maximum.accumulate(np.maximum(values.astype(np.float64), 1.0), axis=1)
        known = np.unique(who)
        named = known[np.searchsorted(known, client).clip(0, len(known) - 1)]
        missing = max(missing, len(np.setdiff1d(client, known)))
        drawn = np.zeros(len(client))
        shares = rng.random(len(client))
        span = int(max(window.max(), when.max())) + 1
        key, inverse = np.unique(named * span + window, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
        for k, rows in zip(key, parts, strict=True):
            mine = np.flatnonzero(who == k // span)
            nearest = mine[np.abs(when[mine] - k % span).argmin()]
            drawn[rows] = np.exp(np.interp(shares[rows], LEVELS, np.log(values[nearest])))
        found.append(drawn)
    return found[0], found[1], missing
