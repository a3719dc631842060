"""Service levels of whole sessions: every round's first token in time, and the mean gap between tokens."""

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.slo import SloClasses
from gpusched.sim.metrics import of_class
from gpusched.sim.result import SimulationResult
from gpusched.traces.trace import Trace

Bools = NDArray[np.bool_]


def sessions_met(
    result: SimulationResult, trace: Trace, slo: SloClasses, *, warmup_s: float = 0.0
) -> dict[tuple[str, str], Bools]:
    """Return which sessions meet each bound, by class and bound.

    A session meets the TTFT and E2E bounds if all of its rounds do, and the TPOT bound if the mean gap
    between all tokens of its answers does; one with a rejected round meets none. Its class is that of
    its first round; sessions that start in the warm-up are left out.
    """
    if trace.session_id is None:
        session = np.arange(len(trace))
    else:
        _, session = np.unique(trace.session_id, return_inverse=True)
    sessions = int(session.max()) + 1
    first = np.full(sessions, len(trace))
    np.minimum.at(first, session, np.arange(len(trace)))
    counted = result.after(warmup_s)[first]
    served = ~_any(session, result.rejected, sessions)
    gaps = np.bincount(session, np.maximum(result.output_tokens - 1, 0), sessions)
    spent_s = np.bincount(session, np.nan_to_num(result.finish_s - result.first_token_s), sessions)
    tpot_s = spent_s / np.maximum(gaps, 1.0)
    met = {}
    for index, (name, bounds) in enumerate(slo.classes.items()):
        rows = counted if slo.only is not None else counted & of_class(result, index)[first]
        for bound in ("ttft", "tpot", "e2e"):
            limit = getattr(bounds, f"{bound}_s")
            if limit is None:
                continue
            if bound == "tpot":
                ok = tpot_s <= limit * (1 + 1e-12)
            else:
                late = getattr(result, f"{bound}_s") > limit * (1 + 1e-12)
                ok = ~_any(session, late, sessions)
            met[name, bound] = (ok & served)[rows]
    return met


def session_attainments(met: dict[tuple[str, str], Bools]) -> dict[str, float]:
    """Return the share of each class's sessions that meet all of its bounds; 1 for an empty class."""
    joint: dict[str, Bools] = {}
    for (name, _), ok in met.items():
        joint[name] = joint[name] & ok if name in joint else ok
    return {name: float(ok.mean()) if len(ok) else 1.0 for name, ok in joint.items()}


def _any(session: NDArray[np.int64], flag: Bools, sessions: int) -> Bools:
    return np.asarray(np.bincount(session, flag, sessions) > 0)
