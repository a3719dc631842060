"""Kinds of workers: how fast each is in either phase, and what keeps it out of one.

A worker's speed is the share of the whole offered load that it carries alone. Prefills take
``T_pre(history, new)`` each. Decodes run in the largest batch that keeps the gap between tokens within
its objective and the contexts within the KV cache; local prefills, a share ``kappa`` of the incremental
ones, stop that batch for their time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.spec import Spec
from gpusched.planning.candidates import Engine, Refusal, kind_label
from gpusched.planning.rounds.load import RoundLoad
from gpusched.planning.rounds.problem import SplitProblem
from gpusched.traces.trace import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Kind:
    """One layout on one group of nodes, as a prefill and as a decode worker."""

    prefill: Engine
    """With the largest token budget."""
    decode: Engine
    """With the smallest, which leaves the most KV cache."""
    prefill_speed: float
    """Share of the offered prefill work that one worker carries; 0 if it may not prefill."""
    decode_speed: float
    batch: int
    """Sequences decoded at once at full speed."""
    prefill_s: Floats
    """Time of each round's prefill on an idle worker."""
    step_s: Floats
    """Mean time of a token in batches of 1, 2, ... sequences, local prefills included, at full speed."""

    @property
    def gpus(self) -> int:
        """GPUs of a worker."""
        return self.prefill.gpus

    def __str__(self) -> str:
        return kind_label(self.prefill.pool)


def worker_kinds(
    spec: Spec, trace: Trace, load: RoundLoad, engines: list[Engine], local_share: float
) -> tuple[list[Kind], list[Refusal]]:
    """Return the kinds that may serve a phase, and why others or other phases are refused."""
    kinds, refusals = [], []
    for prefill, decode in _by_layout(engines):
        idle_s = load.prefill_s(prefill.timing)
        refused = _too_slow_to_prefill(spec, trace, idle_s, kind_label(prefill.pool))
        speed = 0.0 if refused is not None else 1.0 / _prefill_work(load, idle_s, local_share)
        step_s, decode_work = _decoding(spec, load, decode, local_share)
        good = np.flatnonzero(step_s <= tightest_tpot_s(spec))
        refusals += [refused] if refused is not None else []
        if len(good):
            best = int(good[np.argmin(decode_work[good])])
            decode_speed, batch = 1.0 / float(decode_work[best]), best + 1
        else:
            decode_speed, batch = 0.0, 0
            refusals.append(_too_slow_to_decode(spec, step_s, kind_label(decode.pool)))
        if speed or decode_speed:
            kinds.append(Kind(prefill, decode, speed, decode_speed, batch, idle_s, step_s))
    return kinds, refusals


def split_problem(spec: Spec, kinds: list[Kind], gpus: int | None = None) -> SplitProblem:
    """Return the problem of splitting the cluster, or ``gpus`` of a cluster of one group."""
    nodes = spec.cluster.nodes
    totals = np.array([group.total_gpus for group in nodes], np.int64)
    if gpus is not None:
        totals = np.minimum(totals, gpus)
    return SplitProblem(
        size=np.array([kind.gpus for kind in kinds], np.int64),
        prefill_speed=np.array([kind.prefill_speed for kind in kinds]),
        decode_speed=np.array([kind.decode_speed for kind in kinds]),
        prefill_load=1.0,
        decode_load=1.0,
        group=np.array([kind.prefill.group for kind in kinds], np.int64),
        gpus=totals,
        per_node=np.array([group.gpus_per_node for group in nodes], np.int64),
        kv_tokens=np.array([kind.decode.kv_tokens for kind in kinds], np.float64),
    )


def tightest_tpot_s(spec: Spec) -> float:
    """Return the least bound on the gap between tokens; infinite without one."""
    return min((slo.tpot_s or np.inf) for slo in spec.slo.classes.values())


def _by_layout(engines: list[Engine]) -> list[tuple[Engine, Engine]]:
    """Return the engines of the largest and of the smallest token budget of each layout."""
    layouts: dict[tuple[object, ...], list[Engine]] = {}
    for engine in engines:
        pool = engine.pool
        if pool.pipeline_parallel_size == 1:
            key = (engine.group, pool.parallelism, pool.enable_expert_parallel)
            layouts.setdefault(key, []).append(engine)

    def budget(engine: Engine) -> int:
        return engine.pool.engine.max_num_batched_tokens or 0

    return [(max(same, key=budget), min(same, key=budget)) for same in layouts.values()]


def _prefill_work(load: RoundLoad, idle_s: Floats, local_share: float) -> float:
    """Return the workers that the prefills sent to prefill workers keep busy."""
    first, later = load.first, ~load.first
    work = load.first_per_s * float(idle_s[first].mean())
    work += (1.0 - local_share) * load.later_per_s * float(idle_s[later].mean())
    return max(work, 1e-12)


def _decoding(
    spec: Spec, load: RoundLoad, engine: Engine, local_share: float
) -> tuple[Floats, Floats]:
    """Return, for batches of 1, 2, ..., a token's mean time and the workers kept busy.

    For ``d`` tokens a second in steps of ``T(b)`` and local prefills that take ``p`` of every second,
    ``d T / b + p`` workers are busy, and a token takes ``T (1 + p b / (d T))``.
    """
    most = max(
        min(int(engine.kv_tokens / max(load.decode_context_tokens, 1.0)), spec.engine.max_num_seqs),
        1,
    )
    batch = np.arange(1, most + 1, dtype=np.float64)
    context, timing = load.decode_context_tokens, engine.timing
    inside = min(context, float(timing.window))
    attention_s = timing.context_s * context + timing.window_context_s * inside
    whole_s = timing.decode_tokens_s(batch) + batch * attention_s
    later_s = load.prefill_s(timing)[~load.first]
    local = local_share * load.later_per_s * float(later_s.mean())
    tokens = max(load.decode_tokens_per_s, 1e-12)
    return whole_s + local * batch / tokens, tokens * whole_s / batch + local


def _too_slow_to_prefill(spec: Spec, trace: Trace, idle_s: Floats, label: str) -> Refusal | None:
    """Refuse a worker on which too few prefills are in time even if none ever waits (A-7)."""
    for index, (name, slo) in enumerate(spec.slo.classes.items()):
        if slo.ttft_s is None:
            continue
        rows = np.arange(len(trace))
        if spec.slo.only is None and trace.class_id is not None:
            rows = np.flatnonzero(trace.class_id == index)
        if not len(rows):
            continue
        unit_s = _worst_by_unit(spec, trace, rows, idle_s)
        at_best = float(np.quantile(unit_s, slo.attainment, method="inverted_cdf"))
        if at_best > slo.ttft_s:
            of = "" if spec.slo.only is not None else f" of class {name}"
            unit = "session's slowest round" if spec.workload.counts_sessions else "round"
            return Refusal(
                label,
                f"the prefill of a {unit}{of} takes {at_best:.3g} s on an idle worker at the "
                f"{slo.attainment:.4g} quantile, above the TTFT bound of {slo.ttft_s:g} s",
                "ttft",
                at_best / slo.ttft_s,
                f"allow a TTFT of at least {at_best:.3g} s, or lower the attainment",
            )
    return None


def _worst_by_unit(spec: Spec, trace: Trace, rows: NDArray[np.int64], idle_s: Floats) -> Floats:
    """Return the slowest prefill of each session, or each prefill where rounds are counted."""
    if not spec.workload.counts_sessions or trace.session_id is None:
        return idle_s[rows]
    _, session = np.unique(trace.session_id[rows], return_inverse=True)
    worst = np.zeros(int(session.max()) + 1)
    np.maximum.at(worst, session, idle_s[rows])
    return worst


def _too_slow_to_decode(spec: Spec, step_s: Floats, label: str) -> Refusal:
    limit = tightest_tpot_s(spec)
    least = float(step_s.min())
    return Refusal(
        label,
        f"a token takes {least * 1e3:.3g} ms at the least, above the TPOT bound of "
        f"{limit * 1e3:g} ms",
        "tpot",
        least / limit,
        f"allow a TPOT of at least {least * 1e3:.3g} ms",
    )
