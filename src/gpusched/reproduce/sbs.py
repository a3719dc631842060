"""Staggered batch scheduling (arXiv 2512.16134), rerun on models of gated engines.

Four prefill engines and one decode engine of DeepSeek-V3 on H800, each of eight or 32 data-parallel
units, timed by our timing model. The paper's traces and tables are not public.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gpusched.planning.packing import balanced_packing, longest_first_ratio
from gpusched.policies.routing.packing import NO_CAP, pack, sort_window
from gpusched.policies.routing.placement import FACTOR
from gpusched.report.svg import Line, Rule, line_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.reproduce.sbs_fleet import fleet_claims, timing
from gpusched.sim.theory.decode_pool import LockstepRun, LockstepUnits, run_lockstep
from gpusched.sim.theory.gated import GatedEngines, GatedRun, run_gated
from gpusched.traces.profiles import draw, load_profile

Task = TypeVar("Task")
Answer = TypeVar("Answer")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ENGINES, UNITS, DECODE_UNITS = 4, 8, 32
CHUNK_TOKENS = 2048
NETWORK_S = 0.002
TRIALS = 200
REQUESTS = 4000
WARM_UP = REQUESTS // 10
"""First requests of a trial, which find the engines empty."""
LOADS = tuple(np.round(np.arange(0.1, 1.101, 0.05), 3).tolist())
"""Offered tokens over those of passes that are always full."""
DISPATCHES = ("round-robin", "least-tokens", "staggered")

# Criteria, set before the experiments were run.
LOAD = 0.7
"""Load at which TTFT is judged."""
FULL_LOAD = 0.9
"""Load at which the use of chunks is judged."""
LOWER_TTFT = 0.30
MORE_LOAD = 0.15
"""Of load at which the mean TTFT is within ``PASSES`` full passes."""
PASSES = 2.0
LOOSER_PASSES = (2.5, 3.0)
BETTER_USE = 0.05
LESS_DISPERSION = 0.10
NEAR_OPTIMAL = 0.05


def run(setting: Setting) -> Reproduction:
    """Rerun the paper's experiments."""
    waits, wait_chart = _waits(setting)
    prefill, ttft_chart = _prefill(setting)
    packing = _packing(setting)
    decode, dispersion_chart = _decode(setting)
    return Reproduction(
        waits + prefill + packing + decode + fleet_claims(setting),
        {
            "sbs-wait": wait_chart,
            "sbs-ttft": ttft_chart,
            "sbs-decode-dispersion": dispersion_chart,
        },
    )


def prefill_engines(chunk_tokens: int) -> GatedEngines:
    """Return the prefill engines; a pass is affine between an eighth of a chunk and a whole one."""
    model, least = timing(UNITS), chunk_tokens // 8
    token_s = (model.prefill_s(chunk_tokens) - model.prefill_s(least)) / (chunk_tokens - least)
    fixed_s = model.prefill_s(chunk_tokens) - token_s * chunk_tokens
    return GatedEngines(ENGINES, UNITS, chunk_tokens, fixed_s, token_s, NETWORK_S)


def full_pass_s(engines: GatedEngines) -> float:
    """Return the time of a pass that fills the chunk of its busiest unit."""
    return engines.fixed_s + engines.token_s * engines.chunk_tokens


def _in_processes(
    setting: Setting, what: str, function: Callable[[Task], Answer], tasks: Sequence[Task]
) -> list[Answer]:
    """Return the function's answers in order, reporting progress."""
    answers = []
    with ProcessPoolExecutor(setting.jobs) as pool:
        for i, answer in enumerate(pool.map(function, tasks)):
            answers.append(answer)
            setting.progress(f"{what}: {i + 1} of {len(tasks)}")
    return answers


# ---- waiting for a gate

PASS_S = 0.3
FLEETS = (1, 2, 4, 8)


def _waits(setting: Setting) -> tuple[tuple[Claim, ...], str]:
    """Passes of fixed length, back to back: T/2 at once, T/(2N) held for the next gate."""
    n = 200_000
    rng = np.random.default_rng(setting.seed)
    arrival_s = np.sort(rng.random(n)) * n * 0.01
    one = np.ones(n, np.int64)
    waits_ms: dict[str, list[float]] = {"at once": [], "held": [], "held, gates in phase": []}
    for engines in FLEETS:
        spread = GatedEngines(engines, 1, NO_CAP, PASS_S, never_idle=True)
        phase = GatedEngines(
            engines, 1, NO_CAP, PASS_S, never_idle=True, first_gate_s=(0.0,) * engines
        )
        for name, fleet, dispatch in (
            ("at once", spread, "random"),
            ("held", spread, "staggered"),
            ("held, gates in phase", phase, "staggered"),
        ):
            run = run_gated(
                fleet, arrival_s, one, dispatch, lowest_interval_s=0.0, seed=setting.seed
            )
            waits_ms[name].append(1e3 * float(run.wait_s.mean()))
    setting.progress("waits for a gate")
    at_once, held, in_phase = (np.array(w) for w in waits_ms.values())
    expected = 1e3 * PASS_S / 2 / np.array(FLEETS)
    four = FLEETS.index(4)
    claims = (
        Claim(
            "mean wait for a gate, 4 engines, passes of 300 ms: dispatched at once, T/2",
            "150",
            f"{at_once[four]:.1f}",
            "ms",
            bool(np.allclose(at_once, 1e3 * PASS_S / 2, rtol=0.02)),
            "within 2 % for 1, 2, 4 and 8 engines",
        ),
        Claim(
            "mean wait for a gate, 4 engines, passes of 300 ms: held for the next gate, T/(2N)",
            "37.5",
            f"{held[four]:.1f}",
            "ms",
            bool(np.allclose(held, expected, rtol=0.02)),
            "within 2 % for 1, 2, 4 and 8 engines, gates evenly spread; with gates in phase, "
            f"holding gains nothing: {in_phase[four]:.1f} ms",
        ),
    )
    fleets = np.array(FLEETS, np.float64)
    chart = line_chart(
        [Line(name, fleets, np.array(w)) for name, w in waits_ms.items()],
        title="Mean wait for a gate, passes of 300 ms",
        x_label="engines",
        y_label="ms",
    )
    return claims, chart


# ---- prefill


@dataclass(frozen=True, slots=True)
class Trial:
    """One draw of prompts and arrivals, to be run at several loads."""

    seed: tuple[int, int]
    profile: str
    chunk_tokens: int
    loads: tuple[float, ...]
    dispatches: tuple[str, ...] = DISPATCHES


FIGURES = ("ttft_s", "wait_s", "chunk_use", "level")


def run_trial(trial: Trial) -> Floats:
    """Return figures of a trial, shape (loads, dispatches, figures)."""
    rng = np.random.default_rng(trial.seed)
    engines = prefill_engines(trial.chunk_tokens)
    prompt = load_profile(trial.profile).prompt_tokens
    tokens = np.ceil(draw(prompt, rng.random(REQUESTS))).astype(np.int64)
    unit_s = np.cumsum(rng.exponential(1.0, REQUESTS))
    capacity = ENGINES * UNITS * trial.chunk_tokens / full_pass_s(engines)
    found = np.empty((len(trial.loads), len(trial.dispatches), len(FIGURES)))
    for (i, load), (k, dispatch) in product(enumerate(trial.loads), enumerate(trial.dispatches)):
        arrival_s = unit_s * tokens.mean() / (capacity * load)
        found[i, k] = _figures(run_gated(engines, arrival_s, tokens, dispatch, seed=trial.seed[1]))
    return found


def _figures(run: GatedRun) -> tuple[float, ...]:
    return (
        float(run.ttft_s[WARM_UP:].mean()),
        float(run.wait_s[WARM_UP:].mean()),
        run.chunk_use,
        run.level,
    )


def highest_load(ttft_s: Floats, bound_s: float) -> float:
    """Return the highest load up to which the mean TTFT stays within a bound, interpolated."""
    above = np.flatnonzero(ttft_s > bound_s)
    if not len(above):
        return float(LOADS[-1])
    i = int(above[0])
    if i == 0:
        return float(LOADS[0])
    share = (bound_s - ttft_s[i - 1]) / (ttft_s[i] - ttft_s[i - 1])
    return float(LOADS[i - 1] + share * (LOADS[i] - LOADS[i - 1]))


def _prefill(setting: Setting) -> tuple[tuple[Claim, ...], str]:
    """200 trials over loads: TTFT, load within a TTFT, use of chunks."""
    trials = [Trial((setting.seed, t), "chat", CHUNK_TOKENS, LOADS) for t in range(TRIALS)]
    found = np.array(_in_processes(setting, "prefill trials", run_trial, trials))
    others = list(product(("chat", "code"), (2048, 8192)))
    variants = [
        Trial((setting.seed, t), profile, chunk, (LOAD,))
        for profile, chunk in others
        for t in range(TRIALS // 10)
    ]
    variant = np.array(_in_processes(setting, "other prompts and chunks", run_trial, variants))
    variant_ttft_s = variant[:, 0, :, 0].reshape(len(others), -1, len(DISPATCHES))
    staggered = DISPATCHES.index("staggered")
    ttft_s = found[..., 0]
    at, full = LOADS.index(LOAD), LOADS.index(FULL_LOAD)
    bound_s = PASSES * full_pass_s(prefill_engines(CHUNK_TOKENS))
    most = {
        passes: np.array(
            [
                [highest_load(t[:, k], bound_s * passes / PASSES) for k in range(len(DISPATCHES))]
                for t in ttft_s
            ]
        )
        for passes in (PASSES, *LOOSER_PASSES)
    }
    lowest = 100 * (1 - ttft_s[:, :, staggered, None] / ttft_s)
    claims = []
    for k, name in enumerate(DISPATCHES[:staggered]):
        lower = 1 - ttft_s[:, at, staggered] / ttft_s[:, at, k]
        more = {n: m[:, staggered] / m[:, k] - 1 for n, m in most.items()}
        use = found[:, full, staggered, 2] / found[:, full, k, 2] - 1
        elsewhere = ", ".join(
            f"{profile} in chunks of {chunk} {100 * (1 - v[:, staggered] / v[:, k]).mean():.0f}"
            for (profile, chunk), v in zip(others, variant_ttft_s, strict=True)
        )
        wait = 1 - found[:, at, staggered, 1] / found[:, at, k, 1]
        claims += [
            Claim(
                f"mean TTFT lower than under {name} at once",
                "30 to 40",
                f"{100 * np.median(lower):.0f} ({_range(100 * lower)})",
                "%",
                bool(np.median(lower) >= LOWER_TTFT),
                f"median of {TRIALS} trials at load {LOAD} (5th to 95th percentile); over loads "
                f"{_over_loads(np.median(lowest[:, :, k], axis=0))}; the wait alone falls by "
                f"{100 * np.median(wait):.0f} %, the rest of TTFT is the pass itself; {elsewhere} %",
            ),
            Claim(
                f"more load than under {name} at once, TTFT kept",
                "15 to 20",
                f"{100 * np.median(more[PASSES]):.0f} ({_range(100 * more[PASSES])})",
                "%",
                bool(np.median(more[PASSES]) >= MORE_LOAD),
                f"highest load with a mean TTFT within {PASSES:g} full passes ({bound_s:.2f} s): "
                f"{np.median(most[PASSES][:, staggered]):.2f} against "
                f"{np.median(most[PASSES][:, k]):.2f} of capacity; within "
                + ", ".join(f"{n:g} passes {100 * np.median(more[n]):.0f} %" for n in LOOSER_PASSES)
                + "; with a backlog all chunks are full whatever the dispatch, so capacity "
                "itself does not change",
            ),
            Claim(
                f"prefill chunks fuller than under {name} at once",
                "substantially",
                f"{np.median(found[:, full, staggered, 2]):.3f} against "
                f"{np.median(found[:, full, k, 2]):.3f}",
                "of chunks",
                bool(np.median(use) >= BETTER_USE),
                f"at load {FULL_LOAD}; counted as held if higher by {100 * BETTER_USE:.0f} %",
            ),
        ]
    chart = line_chart(
        [
            Line(name, np.array(LOADS), np.median(ttft_s[:, :, k], axis=0))
            for k, name in enumerate(DISPATCHES)
        ],
        title="Mean time to first token, 4 gated engines of 8 units",
        x_label="load",
        y_label="s",
        rules=[Rule(f"{PASSES:g} full passes", bound_s, "y")],
        y_top=4 * bound_s,
    )
    return tuple(claims), chart


def _range(values: Floats) -> str:
    low, high = np.quantile(values, (0.05, 0.95))
    return f"{low:.0f} to {high:.0f}"


def _over_loads(percent: Floats) -> str:
    shown = [LOADS.index(load) for load in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    return ", ".join(f"{LOADS[i]:g}: {percent[i]:.0f} %" for i in shown)


# ---- packing

WINDOWS = 24
PROOF = 0.02
"""Share within which the optimum is to be known: a second of search, mostly."""


def _packing(setting: Setting) -> tuple[Claim, ...]:
    """Greedy packing against the optimum, windows of chat prompts, half of them partly cached."""
    excess = _in_processes(
        setting, "packing", packing_excess, [(setting.seed, i) for i in range(WINDOWS)]
    )
    plain, cached = np.array(excess).T
    bound = longest_first_ratio(UNITS)
    return (
        Claim(
            "greedy packing close to the best possible",
            f"at most {100 * (bound - 1):.0f} without cache hits (Graham's bound)",
            f"{100 * plain.mean():.1f} (at most {100 * plain.max():.1f}) without hits, "
            f"{100 * cached.mean():.1f} (at most {100 * cached.max():.1f}) with",
            "% above",
            bool(plain.max() <= bound - 1 + 1e-9 and plain.mean() <= NEAR_OPTIMAL),
            f"{WINDOWS} windows of 32 prompts on {UNITS} units against a mixed-integer program's bound, "
            f"itself within {100 * PROOF:.0f} % of the optimum; held if within Graham's bound and "
            f"{100 * NEAR_OPTIMAL:.0f} % on average without hits; the paper gives no figure",
        ),
    )


def packing_excess(seed: tuple[int, int]) -> tuple[float, float]:
    """Return by how much greedy packing exceeds the best one's bound, without and with hits."""
    rng = np.random.default_rng(seed)
    n = 4 * UNITS
    tokens = np.ceil(draw(load_profile("chat").prompt_tokens, rng.random(n))).astype(np.int64)
    none = np.zeros((n, UNITS), np.int64)
    hits = none.copy()
    holder = rng.integers(UNITS, size=n)
    partly = np.flatnonzero(rng.random(n) < 0.5)
    hits[partly, holder[partly]] = (tokens * rng.random(n)).astype(np.int64)[partly]
    excess = []
    for known in (none, hits):
        order, assigned, ages = np.arange(n), np.empty(n, np.int64), np.zeros(n, np.int64)
        room = np.full(UNITS, NO_CAP)
        sort_window(order, n, tokens, ages)
        pack(order, n, tokens, known, room, assigned, ages, 0, UNITS, NO_CAP, NO_CAP)
        best = balanced_packing(
            tokens, known, np.zeros(UNITS, np.int64), gap=PROOF, time_limit_s=60.0
        )
        excess.append(float((NO_CAP - room.min()) / best.bound - 1))
    return excess[0], excess[1]


# ---- decode placement

DECODES = 120_000
BATCH = 32
"""Requests a unit, about."""
SEEDS = 4
SLACKS = (0, 1, 2, 3, 4, 6, 8)
NO_FENCE = 1e9
PLACEMENTS: dict[str, tuple[str, float, int]] = {
    "round-robin": ("round-robin", FACTOR, 0),
    "least-requests": ("least-requests", FACTOR, 0),
    "lexicographic": ("lexicographic", FACTOR, 0),
    **{f"slack {slack}": ("lexicographic", NO_FENCE, slack) for slack in SLACKS},
}
"""Placement, distance of the fence, and slack."""
CONTEXTS = {"reasoning": ("reason",), "chat with one agent in ten": ("chat", "agent")}


def decode_requests(profiles: Iterable[str], rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return prompt and output tokens; of two profiles, one request in ten is of the second."""
    first, *rest = (load_profile(name) for name in profiles)
    shares = rng.random((3, DECODES))
    prompt, output = (
        draw(table, share)
        for table, share in zip((first.prompt_tokens, first.output_tokens), shares, strict=False)
    )
    for other in rest:
        chosen = shares[2] < 0.1
        prompt = np.where(chosen, draw(other.prompt_tokens, shares[0]), prompt)
        output = np.where(chosen, draw(other.output_tokens, shares[1]), output)
    return np.ceil(prompt).astype(np.int64), np.ceil(output).astype(np.int64)


def run_decode(task: tuple[str, str, int]) -> LockstepRun:
    """Run one placement on one draw of requests, which come as prefill passes end."""
    contexts, name, seed = task
    rng = np.random.default_rng(seed)
    prompt, output = decode_requests(CONTEXTS[contexts], rng)
    affine = timing(DECODE_UNITS).affine(BATCH)
    units = LockstepUnits(DECODE_UNITS, affine.b0, affine.b1, affine.b2)
    # contexts seen by a step are those of long answers more often
    context = float((output * (prompt + output / 2)).sum() / output.sum())
    step_s = affine.b0 + BATCH * (affine.b1 + affine.b2 * context)
    rate_rps = BATCH * DECODE_UNITS / (output.mean() * step_s)
    arrival_s = np.cumsum(rng.exponential(1 / rate_rps, DECODES))
    gate_s = full_pass_s(prefill_engines(CHUNK_TOKENS)) / ENGINES
    arrival_s = np.ceil(arrival_s / gate_s) * gate_s
    placement, factor, slack = PLACEMENTS[name]
    return run_lockstep(
        units, arrival_s, prompt, output, placement,
        factor=factor, slack=slack, settled=DECODES // 5, seed=seed,
    )  # fmt: skip


def _decode(setting: Setting) -> tuple[tuple[Claim, ...], str]:
    """Dispersion of batch and KV cache between the units of a decode engine."""
    tasks = [
        (contexts, name, setting.seed * SEEDS + k)
        for contexts in CONTEXTS
        for name in PLACEMENTS
        for k in range(SEEDS)
    ]
    runs = dict(zip(tasks, _in_processes(setting, "decode runs", run_decode, tasks), strict=True))

    def mean(figure: str, contexts: str, name: str) -> float:
        chosen = [r for (c, n, _), r in runs.items() if (c, n) == (contexts, name)]
        return float(np.mean([getattr(r, figure) for r in chosen]))

    claims = []
    for contexts, (figure, what, name) in product(
        CONTEXTS,
        (
            ("batch_variation", "batch", "round-robin"),
            ("kv_variation", "KV cache", "round-robin"),
            ("kv_variation", "KV cache", "least-requests"),
        ),
    ):
        theirs, ours = mean(figure, contexts, name), mean(figure, contexts, "lexicographic")
        claims.append(
            Claim(
                f"decode {what} less dispersed between units than under {name}, {contexts}",
                "smaller",
                f"{ours:.3f} against {theirs:.3f}",
                "coefficient of variation",
                ours <= (1 - LESS_DISPERSION) * theirs,
                f"counted as smaller from {100 * LESS_DISPERSION:.0f} %; a step takes "
                f"{_ms(mean('mean_step_s', contexts, 'lexicographic'))} against "
                f"{_ms(mean('mean_step_s', contexts, name))}; without the fence, but with the KV "
                f"cache deciding within 4 requests: {mean(figure, contexts, 'slack 4'):.3f} and "
                f"{_ms(mean('mean_step_s', contexts, 'slack 4'))}",
            )
        )
    slacks = np.array(SLACKS, np.float64)
    lines, rules = [], []
    for contexts in CONTEXTS:
        for figure, what in (("kv_variation", "KV"), ("batch_variation", "batch")):
            values = [mean(figure, contexts, f"slack {slack}") for slack in SLACKS]
            lines.append(Line(f"{what}, {contexts}", slacks, np.array(values)))
        rules.append(
            Rule(
                f"KV, {contexts}, the paper's rule",
                mean("kv_variation", contexts, "lexicographic"),
                "y",
            )
        )
    chart = line_chart(
        lines,
        title="Dispersion between decode units, KV cache deciding within a slack of requests",
        x_label="slack, requests",
        y_label="coefficient of variation",
        rules=rules,
    )
    return tuple(claims), chart


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"
