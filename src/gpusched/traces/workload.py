"""From a spec's workload to its trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from gpusched.domain.slo import SloClasses
from gpusched.domain.workload import Workload
from gpusched.errors import InputError, unknown_name
from gpusched.traces.generate import generate
from gpusched.traces.read import read_trace
from gpusched.traces.sessions import sessions_from_prefixes
from gpusched.traces.trace import Trace


def load_workload(workload: Workload, slo: SloClasses, *, seed: int = 0) -> Trace:
    """Return the trace that a workload describes, its requests in the classes of ``slo``.

    Raises:
        InputError: the file cannot be read, the window is empty, or classes do not match.
    """
    if workload.trace is not None:
        trace = read_trace(
            Path(workload.trace), format=workload.format, rate_rps=workload.rate_rps, seed=seed
        )
    else:
        assert workload.profile is not None
        assert workload.rate_rps is not None
        trace = generate(
            workload.profile,
            workload.rate_rps,
            workload.duration_s,
            arrivals=workload.arrivals,
            cv=workload.cv,
            seed=seed,
        )
    if workload.rounds is not None and trace.session_id is None and trace.prefix is not None:
        trace = sessions_from_prefixes(trace)
    whole = trace
    if workload.start_s or workload.end_s is not None:
        trace = trace.slice_time(workload.start_s, workload.end_s)
    if workload.limit is not None:
        trace = trace.take(np.arange(min(workload.limit, len(trace))))
    if not len(trace):
        raise InputError(
            f"workload: no request of {whole.name} arrives between {workload.start_s:g} s and "
            f"{workload.end_s} s; it lasts {whole.duration_s:g} s"
        )
    if workload.rate_scale != 1.0:
        trace = trace.scale_rate(workload.rate_scale)
    if workload.warmup_s and workload.warmup_s >= trace.duration_s:
        raise InputError(
            f"workload.warmup_s: {workload.warmup_s:g} s leaves no request to count; the trace "
            f"lasts {trace.duration_s:g} s"
        )
    return assign_classes(trace, slo, seed=seed)


def assign_classes(trace: Trace, slo: SloClasses, *, seed: int) -> Trace:
    """Return the trace with ``class_id`` counting the classes of ``slo``.

    The trace's own classes are matched by name; without any, classes are drawn by their shares.

    Raises:
        InputError: the trace has a class without an objective, or shares are missing.
    """
    if slo.only is not None:
        zeros = np.zeros(len(trace), np.int16)
        return replace(trace, class_id=zeros, class_names=slo.names)
    if trace.class_id is not None and trace.class_names:
        for name in trace.class_names:
            if name not in slo.names:
                raise InputError(
                    f"slo: {trace.name} has requests of {unknown_name('class', name, slo.names)}"
                )
        of = np.array([slo.names.index(name) for name in trace.class_names], np.int16)
        return replace(trace, class_id=of[trace.class_id], class_names=slo.names)
    shares = [c.share for c in slo.classes.values() if c.share is not None]
    if not shares:
        raise InputError(
            f"slo: {trace.name} does not say which class a request is in; give each of "
            f"{', '.join(slo.names)} a share"
        )
    drawn = np.random.default_rng([seed, 1]).choice(len(shares), len(trace), p=shares)
    return replace(trace, class_id=drawn.astype(np.int16), class_names=slo.names)
