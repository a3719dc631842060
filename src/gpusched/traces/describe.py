"""Statistics of a trace."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.traces.profiles import LEVELS, Profile, draw
from gpusched.traces.trace import Trace


def describe(trace: Trace) -> dict[str, Any]:
    """Return counts, rates, burstiness, lengths, sessions and the ideal prefix hit ratio.

    ``gap_cv`` is the coefficient of variation of gaps between arrivals, ``dispersion`` the variance
    over the mean of arrivals in bins of one second; both are 1 for a Poisson process.
    """
    roots = trace.arrival_s if trace.round is None else trace.arrival_s[trace.round == 0]
    gaps = np.diff(roots)
    mean_gap = gaps.mean() if len(gaps) else 0.0
    statistics: dict[str, Any] = {
        "name": trace.name,
        "requests": len(trace),
        "duration_s": trace.duration_s,
        "rate_rps": trace.rate_rps if np.isfinite(trace.rate_rps) else None,
        "gap_cv": float(gaps.std() / mean_gap) if mean_gap > 0 else None,
        "dispersion": _dispersion(roots),
        "peak_minute_requests": int(np.bincount((roots / 60).astype(np.int64)).max()),
        "prompt_tokens": _lengths(trace.prompt_tokens),
        "output_tokens": _lengths(trace.output_tokens),
        "length_correlation": _rank_correlation(trace.prompt_tokens, trace.output_tokens),
    }
    if trace.session_id is not None:
        rounds = np.unique(trace.session_id, return_counts=True)[1]
        statistics["sessions"] = len(rounds)
        statistics["rounds_per_session"] = _lengths(rounds)
    if trace.think_s is not None and trace.round is not None and (trace.round > 0).any():
        statistics["think_s"] = _lengths(trace.think_s[trace.round > 0])
    if trace.prefix is not None:
        statistics["prefix_block_tokens"] = trace.prefix.block_tokens
        statistics["ideal_prefix_hit_ratio"] = ideal_hit_ratio(trace)
    if trace.class_id is not None and len(trace.class_names) > 1:
        counts = np.bincount(trace.class_id, minlength=len(trace.class_names))
        statistics["classes"] = dict(zip(trace.class_names, counts.tolist(), strict=True))
    statistics["notes"] = list(trace.notes)
    return statistics


def ideal_hit_ratio(trace: Trace) -> float:
    """Return the share of prompt tokens whose leading blocks were all seen in earlier requests."""
    return float(ideal_hits(trace).sum() / trace.prompt_tokens.sum())


def ideal_hits(trace: Trace) -> NDArray[np.int64]:
    """Return each request's prompt tokens whose leading blocks were all seen in earlier requests."""
    prefix = trace.prefix
    if prefix is None or not prefix.n_blocks:
        return np.zeros(len(trace), np.int64)
    lengths = np.diff(prefix.offsets)
    rows = np.repeat(np.arange(len(trace)), lengths)
    first_row = np.full(prefix.n_blocks, len(trace), np.int64)
    np.minimum.at(first_row, prefix.block_ids, rows)
    seen = first_row[prefix.block_ids] < rows
    position = np.arange(len(rows)) - np.repeat(prefix.offsets[:-1], lengths)
    first_miss = lengths.copy()
    np.minimum.at(first_miss, rows[~seen], position[~seen])
    return np.asarray(np.minimum(first_miss * prefix.block_tokens, trace.prompt_tokens))


def against(trace: Trace, profile: Profile) -> dict[str, Any]:
    """Return how far a trace's lengths stand from a profile's: quantiles and KS distance."""
    report = {}
    for name in ("prompt_tokens", "output_tokens"):
        values, table = np.sort(getattr(trace, name)), getattr(profile, name)
        model = np.rint(draw(table, (np.arange(20_000) + 0.5) / 20_000))
        points = np.unique(np.concatenate((values, model)))
        gaps = (np.searchsorted(v, points, side="right") / len(v) for v in (values, model))
        report[name] = {
            "quantiles": [
                {"share": s, "trace": float(np.quantile(values, s)), "profile": q}
                for s, q in zip(LEVELS, table, strict=True)
            ],
            "ks_distance": float(np.abs(np.subtract(*gaps)).max()),
        }
    return report


def _lengths(values: NDArray[Any]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {
        "mean": float(values.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.max()),
    }


def _dispersion(times_s: NDArray[np.float64]) -> float | None:
    bins = int(times_s[-1]) if len(times_s) else 0
    if bins < 2:
        return None
    counts = np.bincount(times_s[times_s < bins].astype(np.int64), minlength=bins)
    return float(counts.var() / counts.mean()) if counts.any() else None


def _rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    from scipy.stats import spearmanr

    if len(a) < 3 or (a == a[0]).all() or (b == b[0]).all():
        return None
    return float(spearmanr(a, b).statistic)
