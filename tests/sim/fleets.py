"""Random timings, traces and fleets for the simulator's tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from gpusched.policies.batching.discipline import GROUPED, discipline
from gpusched.sim.fleet import Fleet, KvLink, Pool
from gpusched.sim.rounds.setup import needs_rounds
from gpusched.sim.simulate import ClosedLoop
from gpusched.timing.compiled import CompiledTiming
from gpusched.traces.trace import Prefixes, Trace

POLICIES = Path(__file__).with_name("own_policies.py")

DISCIPLINES = [
    "prefill-first",
    "prefill-first+margin=0.1",
    "static",
    "priority",
    "sarathi",
    "sjf+predictor=noisy:0.5",
    "sjf+predictor=noisy:0.5+ageing_tokens_per_s=40",
    "mlfq+quantum_tokens=4",
    "mc-sf+predictor=noisy:0.5",
    "mc-sf+predictor=noisy:0.5+skip=4",
    "mc-volume+predictor=noisy:0.5",
    "mc-fcfs+predictor=noisy:0.5",
    "a-min+predictor=noisy:0.5",
    "greedy",
    "greedy-clearing",
    "wait+predictor=noisy:0.5+reestimate_s=0",
    "wait+predictor=noisy:0.5+start=strict+reestimate_s=0",
    "wait+predictor=noisy:0.5+segments=6+reestimate_s=0.4",
    "nested-wait+reestimate_s=0",
    "nested-wait+segments=8+start=strict+reestimate_s=0",
    "nested-wait+cap=6+hold_s=0.5+reestimate_s=0",
    "nested-wait+segments=8+reestimate_s=0.3",
]
"""Every batching discipline but the plain ones, each with a length predictor of one kind."""


def timing(window: int = 0, *, scale: float = 1.0, max_tokens: int = 300) -> CompiledTiming:
    """A timing model with every term present and a convex token table."""
    n = np.arange(max_tokens + 1.0)
    b = np.arange(65.0)
    group = np.arange(2 * max_tokens + 1.0)
    return CompiledTiming(
        tokens_s=scale * (6e-3 + 2.2e-5 * n + 1e-8 * n * n),
        decode_s=scale * (5e-3 + 1.3e-5 * np.ceil(b / 8) * 8),
        logits_s=scale * 3e-6 * b,
        context_s=scale * 4.1e-7,
        window_context_s=scale * 2.3e-7 if window else 0.0,
        window=window,
        decode_fixed_s=scale * 3.1e-4,
        prefill_fixed_s=scale * 4.3e-4,
        work_s=scale * 2.1e-9,
        window_work_s=scale * 1.3e-9 if window else 0.0,
        experts_s=scale * (1e-3 * (group > 0) + 4e-6 * group),
    )


def trace(
    n: int,
    rate_rps: float,
    seed: int,
    *,
    max_prompt: int = 200,
    max_output: int = 60,
    sessions: bool = False,
    prefixes: int = 0,
) -> Trace:
    """Poisson arrivals; with ``prefixes``, prompts share block chains from so many families."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(1, max_prompt + 1, n).astype(np.int32)
    output = rng.integers(1, max_output + 1, n).astype(np.int32)
    arrival = np.cumsum(rng.exponential(1 / rate_rps, n))
    columns = {}
    if sessions:
        ids = np.sort(rng.integers(0, max(n // 3, 1), n)).astype(np.int32)
        rounds = np.arange(n) - np.searchsorted(ids, ids)
        columns = {
            "session_id": ids,
            "round": rounds.astype(np.int32),
            "think_s": rng.exponential(0.2, n),
        }
    prefix = None
    if prefixes:
        block_tokens = 32
        names: dict[tuple[int, ...], int] = {}
        rows = []
        for i in range(n):
            family = (int(rng.integers(prefixes)),)
            row = []
            for _ in range((prompt[i] + output[i]) // block_tokens):
                family = (*family, int(rng.random() < 0.2) * int(rng.integers(1, 3)))
                row.append(names.setdefault(family, len(names)))
            rows.append(row)
        offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
        flat = np.array([b for row in rows for b in row], np.int32)
        prefix = Prefixes(offsets, flat, block_tokens)
    return Trace(arrival, prompt, output, prefix=prefix, **columns)


@st.composite
def pools(draw, role: str, index: int, window: int) -> Pool:
    """A pool with tight or ample memory; ``half``: a mixed one beside a decode pool."""
    stages = draw(st.sampled_from([1, 1, 1, 2]))
    max_num_seqs = draw(st.sampled_from([2, 3, 8, 20, 64]))
    allowed = {
        "mixed": ["vllm", "vllm", *DISCIPLINES],
        "half": ["vllm", "vllm", *(d for d in DISCIPLINES if d != "static" and "wait" not in d)],
        "prefill": ["vllm", "prefill-first", "sjf"],
        "decode": ["vllm"],
    }
    batching = draw(st.sampled_from(allowed[role]))
    grouped = discipline(batching).gate == GROUPED
    return Pool(
        name=f"{role}{index}",
        timing=timing(window, scale=draw(st.sampled_from([1.0, 0.7]))),
        kv_blocks=draw(st.sampled_from([20, 34, 60, 400])) * stages,
        replicas=draw(st.integers(1, 3)),
        role="mixed" if role == "half" else role,
        batching=batching,
        block_tokens=draw(st.sampled_from([8, 16])),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.sampled_from([64, 100, 256, 1000])),
        prefix_caching=draw(st.booleans()),
        pipeline_stages=stages,
        data_parallel=1 if grouped else draw(st.sampled_from([1, 1, 1, 2, 4])),
        startup_s=draw(st.sampled_from([0.0, 0.0, 0.6])),
    )


def admissions(chosen: list[Pool]):
    """Admission policies that go with pools."""
    names = ["none", "none", "none", f"{POLICIES}:shed+limit=6"]
    plain = {"vllm", "prefill-first", "sarathi", "greedy"}
    if all(pool.batching in plain for pool in chosen):
        names += ["staggered", "staggered+age_limit=2+lowest_interval_s=0.03"]
        if all(pool.timing is chosen[0].timing for pool in chosen):
            names += ["gate-and-route", "gate-and-route-capped", "gate-and-route-credit"]
    return st.sampled_from(names)


@st.composite
def scenarios(draw) -> tuple[Fleet, Trace, ClosedLoop | None, int]:
    """A fleet, a trace, perhaps a closed loop, and a seed: every combination of features."""
    window = draw(st.sampled_from([0, 0, 24, 90]))
    shape = draw(st.sampled_from(["mixed", "mixed", "disaggregated", "half"]))
    if shape == "mixed":
        fleet_pools = [draw(pools("mixed", i, window)) for i in range(draw(st.integers(1, 2)))]
    else:
        first = "prefill" if shape == "disaggregated" else "half"
        fleet_pools = [draw(pools(first, 0, window)), draw(pools("decode", 1, window))]
    fleet = Fleet(
        tuple(fleet_pools),
        link=KvLink(draw(st.sampled_from([0.0, 1e-3])), draw(st.sampled_from([1e-6, 3e-4]))),
        routing=draw(
            st.sampled_from(
                [
                    "round-robin",
                    "random",
                    "least-requests",
                    "least-tokens",
                    "power-of-two",
                    "prefix-affinity",
                    "session-affinity+slack_requests=2",
                    "iqr-lexicographic",
                    "iqr-lexicographic+outlier_factor=0+slack_requests=2",
                    f"{POLICIES}:emptiest+weight=3",
                ]
            )
        ),
        decode_routing=draw(st.sampled_from([None, "least-requests", "iqr-lexicographic"])),
        admission=draw(admissions(fleet_pools)),
    )
    seed = draw(st.integers(0, 2**20))
    requests = trace(
        draw(st.integers(1, 60)),
        draw(st.sampled_from([2.0, 15.0, 80.0, 1000.0])),
        seed,
        max_prompt=draw(st.sampled_from([30, 200, 400])),
        max_output=draw(st.sampled_from([1, 5, 60, 150])),
        sessions=draw(st.booleans()),
        prefixes=draw(st.sampled_from([0, 1, 3])),
    )
    loop = None
    if draw(st.integers(0, 3)) == 0:
        loop = ClosedLoop(draw(st.integers(1, 12)), draw(st.sampled_from([0.0, 0.05])))
    if draw(st.integers(0, 2)) == 0 and not needs_rounds(fleet):
        found = np.random.default_rng(seed).random(len(requests)) * requests.prompt_tokens
        requests = replace(requests, stored_tokens=found.astype(np.int32))
    return fleet, requests, loop, seed
