"""MC-SF (arXiv 2502.07115): its ratio to the optimum in unit rounds, and latencies on an engine.

The paper solves the hindsight program with Gurobi. Here each trial has the best schedule that
annealing finds and a bound by prices of rounds, so that the ratio to the optimum is known to lie
between two figures; small instances are solved to the end. The engine is Llama-2-70B on two A100 in
the simulator's own timing, with lengths drawn to the means and medians that the paper gives of
LMSYS-Chat-1M.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpusched.domain.catalog import load_gpu, load_model
from gpusched.domain.parallel import Parallelism
from gpusched.errors import InputError
from gpusched.planning.hindsight import hindsight_optimum
from gpusched.policies.batching.rounds import Ints, run_rounds
from gpusched.report.svg import Line, line_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.sim.fleet import Fleet, Pool
from gpusched.sim.simulate import simulate
from gpusched.timing.compiled import CompiledTiming
from gpusched.timing.iteration import timing_model
from gpusched.traces.trace import Trace

TRIALS = 200
SMALL_TRIALS = 20
MOVES = 15_000
"""Moves of annealing a trial."""

KV_TOKENS = 16_492
LARGEST = 10_000
"""Requests of the longest run."""
SIZES = (1000, 2000, 4000, 6000, 8000, LARGEST)
REPORTED = 2000
"""Requests over which mean latencies are compared."""
MARGIN_REQUESTS = 4000
HIGH_RPS, LOW_RPS = 50.0, 10.0
PROMPT_TOKENS, OUTPUT_TOKENS = (11.0, 40.62), (45.0, 85.32)
"""Median and mean."""
LONGEST_TOKENS = 2048

MC_SF = "mc-sf+predictor=oracle+margin=0"
MC_BENCHMARK = "mc-fcfs+predictor=oracle+margin=0"
BENCHMARKS = (
    MC_BENCHMARK,
    "greedy+margin=0.3+restart=true",
    "greedy+margin=0.25+restart=true",
    "greedy-clearing+margin=0.2+clear_probability=0.2+restart=true",
    "greedy-clearing+margin=0.2+clear_probability=0.1+restart=true",
    "greedy-clearing+margin=0.1+clear_probability=0.2+restart=true",
    "greedy-clearing+margin=0.1+clear_probability=0.1+restart=true",
)
ERRORS = (0.2, 0.5, 0.8)
MARGINS = tuple(m / 100 for m in range(31))

RATIO_TOLERANCE = 0.01
"""By which a published ratio may miss the range in which ours is known to lie."""
HITS_TOLERANCE = 20
FIRST_COME_BAND = (1.4, 1.9)
"""Mean ratio of MC-Benchmark's total latency to MC-SF's on a few draws of model 1 made beforehand."""
SLOPE_RATIO = 2.0
"""By which MC-SF's latency must grow more slowly than the best benchmark's."""
LOWER = 0.2
"""Share by which MC-SF's mean latency must be below MC-Benchmark's at high load."""
NOISY_LOWER = 0.05
"""The same with predictions that are wrong."""
MARGIN_TOLERANCE = 0.05
REPEATED = 0.01
"""Clearings a request above which they count as repeated."""
FLAT = 1e-4
"""Seconds a request below which mean latency is taken not to grow."""


class Trial(NamedTuple):
    """Total latencies of one instance, rounds."""

    requests: int
    mc_sf: int
    first_come: int
    best: int
    """Best schedule known."""
    bound: float

    @property
    def proven(self) -> bool:
        """Whether the best schedule known is optimal."""
        return self.best < self.bound + 1.0 - 1e-6


def instance(model: int, seed: int) -> tuple[int, Ints, Ints, Ints]:
    """Return budget, arrivals, prompts and outputs of a trial of arrival model 1 or 2, or, as model
    0, of a small one that can be solved to the end."""
    rng = np.random.default_rng((seed, model))
    budget = 15 if model == 0 else int(rng.integers(30, 51))
    if model < 2:
        n = 8 if model == 0 else int(rng.integers(40, 61))
        arrival = np.zeros(n, np.int64)
    else:
        rounds, rate = int(rng.integers(40, 61)), rng.uniform(0.5, 1.5)
        arrival = np.repeat(np.arange(rounds), rng.poisson(rate, rounds))
    prompt = rng.integers(1, 6, len(arrival))
    return budget, arrival, prompt, rng.integers(1, budget - prompt + 1)


def trial(model: int, seed: int) -> Trial:
    """Compare MC-SF with MC-Benchmark and the optimum, or what is known of it."""
    budget, arrival, prompt, output = instance(model, seed)
    found = hindsight_optimum(
        arrival,
        prompt,
        output,
        budget,
        method="prices" if model else "program",
        threads=1,
        moves=MOVES,
        seed=seed,
    )
    mc_sf, first_come = (
        run_rounds(arrival, prompt, output, budget, policy).total_latency
        for policy in ("mc-sf", "mc-fcfs")
    )
    return Trial(len(arrival), mc_sf, first_come, found.total_latency, found.bound)


@lru_cache
def engine_timing() -> CompiledTiming:
    """The timing model of Llama-2-70B on two A100 of 80 GB."""
    model, gpu = load_model("llama-2-70b"), load_gpu("a100_sxm")
    return timing_model(model, gpu, Parallelism(tp=2)).compile(8192, 1024)


def lengths(median_mean: tuple[float, float], rng: np.random.Generator, n: int) -> Ints:
    """Return log-normal lengths of a median and a mean, in tokens."""
    median, mean = median_mean
    drawn = median * np.exp(sqrt(2.0 * log(mean / median)) * rng.standard_normal(n))
    return np.clip(np.rint(drawn), 1, LONGEST_TOKENS).astype(np.int64)


def requests(rate_rps: float, seed: int) -> Trace:
    """Return Poisson arrivals with such lengths."""
    rng = np.random.default_rng((seed, 70))
    prompt = lengths(PROMPT_TOKENS, rng, LARGEST).astype(np.int32)
    output = lengths(OUTPUT_TOKENS, rng, LARGEST).astype(np.int32)
    return Trace(np.cumsum(rng.exponential(1.0 / rate_rps, LARGEST)), prompt, output)


class Run(NamedTuple):
    """Figures of one simulation."""

    latency_s: float
    """Mean."""
    clearings: float
    """A request."""
    throughput_rps: float


def serve(policy: str, rate_rps: float, size: int, seed: int) -> Run:
    """Simulate the first requests on one engine; KV blocks of one token, as in the paper."""
    pool = Pool(
        "a100",
        engine_timing(),
        KV_TOKENS,
        batching=policy,
        block_tokens=1,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        prefix_caching=False,
        gpus_per_replica=2,
    )
    result = simulate(Fleet((pool,)), requests(rate_rps, seed).take(np.arange(size)), seed=seed)
    latency_s = float(np.mean(result.finish_s - result.arrival_s))
    return Run(latency_s, float(result.preemptions.mean()), size / result.makespan_s)


def slope_s(sizes: Iterable[int], latencies_s: Iterable[float]) -> float:
    """Return the growth of mean latency by request, least squares."""
    return float(np.polyfit(list(sizes), list(latencies_s), 1)[0])


def run(setting: Setting) -> Reproduction:
    """Rerun the trials in unit rounds, the growth of latency on an engine and its study of wrong
    predictions."""
    with ProcessPoolExecutor(setting.jobs) as pool:
        trials: dict[int, list[Trial]] = {}
        for model, count in ((0, SMALL_TRIALS), (1, TRIALS), (2, TRIALS)):
            seeds = range(setting.seed * TRIALS, setting.seed * TRIALS + count)
            done: list[Trial] = []
            for one in pool.map(trial, [model] * count, seeds, chunksize=4):
                done.append(one)
                if len(done) % 10 == 0:
                    setting.progress(f"arrival model {model}: {len(done)} of {count} trials")
            trials[model] = done

    def engine(policy: str, rate_rps: float, size: int | None = None) -> Run:
        size = size or LARGEST
        setting.progress(f"engine: {policy} at {rate_rps:.3g} requests/s, {size:,} requests")
        return serve(policy, rate_rps, size, setting.seed)

    growth, chart = _growth(engine)
    return Reproduction(
        (*_ratios(trials), *growth, *_wrong_predictions(engine), _least_margin(engine)),
        {"mc-sf-ratio": _ratio_chart(trials), "mc-sf-latency": chart},
    )


def _ratios(trials: dict[int, list[Trial]]) -> list[Claim]:
    claims = []
    small = trials[0]
    exact = np.array([t.mc_sf / t.best for t in small])
    solved = (
        f"On {len(small)} draws of 8 requests and M = 15, of which {sum(t.proven for t in small)} are "
        f"solved to the end, the mean is {exact.mean():.3f}."
    )
    published: dict[int, tuple[str, float, float]] = {
        1: ("all at once", 1.005, 1.074),
        2: ("Poisson arrivals", 1.047, 1.227),
    }
    for model, (words, mean, worst) in published.items():
        done = trials[model]
        low = np.array([t.mc_sf / t.best for t in done])
        high = np.array([t.mc_sf / t.bound for t in done])
        known = (
            f"{sum(t.proven for t in done)} of {len(done)} optima are proven; the first figure is the "
            "ratio to the best schedule known, no more than that to the optimum, the second the ratio "
            "to a bound, no less. "
        )
        for what, figure, ours in (
            ("mean", mean, (low.mean(), high.mean())),
            ("worst", worst, (low.max(), high.max())),
        ):
            below, above = float(ours[0]), float(ours[1])
            holds = below - RATIO_TOLERANCE <= figure <= above + RATIO_TOLERANCE
            reason = known
            if not holds:
                reason += "On these draws there are schedules that beat MC-SF by more than the published ratio. "
            claims.append(
                Claim(
                    f"{what} ratio of MC-SF's total latency to the optimum's, {words}",
                    f"{figure:.3f}",
                    f"{below:.3f} to {above:.3f}",
                    "",
                    holds,
                    reason + solved,
                )
            )
    hits = sum(t.mc_sf == t.best for t in trials[1])
    claims.append(
        Claim(
            f"trials of {TRIALS} in which MC-SF is optimal, all at once",
            "114",
            f"at most {hits}",
            "",
            hits >= 114 - HITS_TOLERANCE,
            "In all the others annealing found a better schedule, which is checked against the budget.",
        )
    )
    behind = float(np.mean([t.first_come / t.mc_sf for t in trials[1]]))
    claims.append(
        Claim(
            "mean ratio of MC-Benchmark's total latency to MC-SF's, all at once",
            "MC-SF ahead",
            f"{behind:.2f}",
            "",
            FIRST_COME_BAND[0] <= behind <= FIRST_COME_BAND[1],
            f"Holds from {FIRST_COME_BAND[0]} to {FIRST_COME_BAND[1]}, which earlier draws gave; the paper "
            "compares them on its engine only.",
        )
    )
    return claims


def _growth(engine: Callable[..., Run]) -> tuple[list[Claim], str]:
    lines = []
    slopes: dict[str, float] = {}
    for policy in (MC_SF, *BENCHMARKS):
        latency_s = [engine(policy, HIGH_RPS, size).latency_s for size in SIZES]
        slopes[policy] = slope_s(SIZES, latency_s)
        if policy in (MC_SF, *BENCHMARKS[:2], BENCHMARKS[-1]):
            lines.append(Line(policy.partition("+")[0], _floats(SIZES), _floats(latency_s)))
    chart = line_chart(
        lines, title="Mean latency at 50 requests/s", x_label="requests", y_label="seconds"
    )
    best = min(BENCHMARKS, key=lambda policy: slopes[policy])
    ratio = slopes[best] / slopes[MC_SF]
    ours_s, benchmark_s = (engine(p, HIGH_RPS, REPORTED).latency_s for p in (MC_SF, MC_BENCHMARK))
    claims = [
        Claim(
            "growth of mean latency with the number of requests, 50/s: best benchmark over MC-SF",
            "3 (1/2 against 1/6)",
            f"{ratio:.1f} ({1e3 * slopes[best]:.1f} against {1e3 * slopes[MC_SF]:.1f} ms a request)",
            "", ratio >= SLOPE_RATIO,
            f"Holds if at least {SLOPE_RATIO:g}. Best benchmark here: {best}. Our timing model in place of "
            "Vidur's, so slopes differ; the unit of the published ones is not known.",
        ),
        Claim(
            "mean latency of MC-SF below MC-Benchmark's, 50/s",
            "31% (32.11 against 46.47)",
            f"{1.0 - ours_s / benchmark_s:.0%} ({ours_s:.1f} against {benchmark_s:.1f} s)",
            "", ours_s <= (1.0 - LOWER) * benchmark_s,
            f"Holds if at least {LOWER:.0%}. Of {REPORTED:,} requests; the gap grows with their number, and the "
            "number behind the published figures is not known.",
        ),
    ]  # fmt: skip
    claims.append(_low_load(engine))
    return claims, chart


def _low_load(engine: Callable[..., Run]) -> Claim:
    """Slopes at the paper's low load, and where MC-Benchmark is just overloaded."""
    found = {}
    capacity_rps = engine(MC_BENCHMARK, HIGH_RPS).throughput_rps
    for rate_rps in (LOW_RPS, capacity_rps):
        slopes = {
            policy: slope_s(SIZES, [engine(policy, rate_rps, size).latency_s for size in SIZES])
            for policy in (MC_SF, MC_BENCHMARK, BENCHMARKS[-1])
        }
        found[rate_rps] = slopes[MC_SF], min(slopes[MC_BENCHMARK], slopes[BENCHMARKS[-1]])
    ours_s, best_s = found[LOW_RPS]
    near_s, best_near_s = found[capacity_rps]
    return Claim(
        "the same growth at 10/s",
        "8 (1/100 against 1/800)",
        f"{1e3 * best_s:.2f} against {1e3 * ours_s:.2f} ms a request",
        "",
        None if best_s < FLAT else best_s >= SLOPE_RATIO * ours_s,
        f"Holds if at least {SLOPE_RATIO:g} times; not testable where nothing queues: our engine serves "
        f"{capacity_rps:.1f} requests/s with MC-Benchmark, so that 10/s is no load to it. At "
        f"{capacity_rps:.1f}/s the growth is {1e3 * best_near_s:.2f} against {1e3 * near_s:.2f} ms.",
    )


def _wrong_predictions(engine: Callable[..., Run]) -> list[Claim]:
    ours, benchmark = [], []
    for error in ERRORS:
        settings = f"+predictor=noisy:{error}+margin=0.1"
        ours.append(engine("mc-sf" + settings, HIGH_RPS).latency_s)
        benchmark.append(engine("mc-fcfs" + settings, HIGH_RPS).latency_s)
    return [
        Claim(
            "MC-SF ahead of first come with predictions wrong by up to 20, 50 and 80%, margin 0.1",
            "ahead at each",
            ", ".join(f"{a:.0f} against {b:.0f}" for a, b in zip(ours, benchmark, strict=True)),
            "s",
            all(a <= (1.0 - NOISY_LOWER) * b for a, b in zip(ours, benchmark, strict=True)),
            f"Holds if at least {NOISY_LOWER:.0%} lower at each. {LARGEST:,} requests at 50/s. A request that "
            "outlives its prediction is expected to end with the next token; when KV blocks run out "
            "the newest is recomputed.",
        )
    ]


def _least_margin(engine: Callable[..., Run]) -> Claim:
    def quiet(margin: float) -> bool:
        try:
            greedy = engine(f"greedy+margin={margin}+restart=true", HIGH_RPS, MARGIN_REQUESTS)
        except InputError:  # it never finishes
            return False
        return greedy.clearings <= REPEATED

    least = next((margin for margin in MARGINS if quiet(margin)), float("nan"))
    return Claim(
        "smallest margin at which greedy admission does not clear again and again, 50/s",
        "0.21",
        f"{least:.2f}",
        "",
        abs(least - 0.21) <= MARGIN_TOLERANCE,
        f"Holds within {MARGIN_TOLERANCE:g}. Repeated is more than {REPEATED:g} clearings a request. How far "
        "the batch outgrows its admission depends on the tail of lengths, log-normal here.",
    )


def _ratio_chart(trials: dict[int, list[Trial]]) -> str:
    lines = []
    for model, words in ((1, "all at once"), (2, "Poisson arrivals")):
        share = np.linspace(0.0, 100.0, len(trials[model]))
        best = np.sort([t.mc_sf / t.best for t in trials[model]])
        bound = np.sort([t.mc_sf / t.bound for t in trials[model]])
        lines.append(Line(f"{words}, to the best schedule known", share, best - 1.0))
        lines.append(Line(f"{words}, to the bound", share, bound - 1.0))
    return line_chart(
        lines,
        title="MC-SF's total latency beyond the optimum's: what is known",
        y_label="excess",
        x_label="trials, in order, %",
    )


def _floats(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), np.float64)
