"""Best-of-infinity's experiments, rerun on its authors' released answer counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from gpusched.report.vote_curve import charts
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.sampling.answer_log import PromptAnswers, read_answer_log
from gpusched.sampling.calibration import Calibration, calibrate
from gpusched.sampling.ensemble import (
    TIE,
    AnswerRates,
    limit_correct,
    margins,
    single_correct,
)
from gpusched.sampling.weights import ensemble_weights

FILE = "voting/boinf_answer_counts.parquet"
OSS, NEMOTRON, PHI = "gpt-oss-20b", "NVIDIA-Nemotron-Nano-9B-v2", "Phi-4-reasoning"
CURVES = (("math500", NEMOTRON, 20), ("aime2025", OSS, 60), ("gpqa_diamond", PHI, 20))
"""Data set, model and replays of the adaptive experiment."""
SLACK = 0.002
"""Accuracy within which two rules match."""
GPQA_WEIGHTS = {
    "EXAONE-Deep-32B": 0.0176, "MetaStone-S1-32B": 0.0346, PHI: 0.2690,
    "Qwen3-30B-A3B-Thinking-2507": 0.4145, OSS: 0.2644,
}  # fmt: skip
"""The published ensemble for GPQA-Diamond."""

QWEN = "Qwen3-30B-A3B-Thinking-2507"
STONE, EXAONE = "MetaStone-S1-32B", "EXAONE-Deep-32B"
EARLIER = {
    "aime2024": {
        OSS: 90.0, QWEN: 93.3, PHI: 86.7, NEMOTRON: 86.7, STONE: 90.0, EXAONE: 86.7,
        "AM-Thinking-v1": 90.0, "Qwen3-14B": 86.7, "Qwen3-4B": 80.0, "LIMO-v2": 80.0,
        "Datarus-R1-14B-preview": 73.3,
    },
    "aime2025": {
        OSS: 90.0, QWEN: 90.0, PHI: 83.3, NEMOTRON: 73.3, STONE: 80.0, EXAONE: 76.7,
        "AM-Thinking-v1": 86.7, "Qwen3-14B": 80.0, "Qwen3-4B": 73.3, "LIMO-v2": 70.0,
        "Datarus-R1-14B-preview": 60.0,
    },
    "gpqa_diamond": {
        OSS: 72.2, QWEN: 73.2, PHI: 72.7, NEMOTRON: 62.6, STONE: 71.2, EXAONE: 69.2,
    },
    "math500": {
        OSS: 96.0, QWEN: 96.0, PHI: 94.6, NEMOTRON: 95.6, STONE: 95.0, EXAONE: 96.2,
        "Qwen3-14B": 95.6,
    },
}  # fmt: skip
"""Limits of majority voting in the counts of the paper's time, %."""


@dataclass(frozen=True)
class Released:
    """Counts of every answer by data set and model."""

    logs: dict[tuple[str, str], dict[str, PromptAnswers]]

    def models(self, dataset: str) -> list[str]:
        """Models with answers to a data set."""
        return sorted(model for data, model in self.logs if data == dataset)

    def rates(self, dataset: str, models: Sequence[str]) -> list[AnswerRates]:
        """Answer rates of models to each prompt that any of them answered."""
        logs = [self.logs[dataset, model] for model in models]
        names = sorted({name for log in logs for name in log}, key=int)
        return [_rates([log.get(name) for log in logs]) for name in names]


def _rates(prompts: Sequence[PromptAnswers | None]) -> AnswerRates:
    counts: list[dict[str, float]] = []
    gold = None
    for prompt in prompts:
        given = {}
        if prompt is not None:
            for answer, count in zip(prompt.answers, prompt.counts, strict=True):
                if answer is not None:
                    given[answer] = float(count)
            gold = prompt.answers[prompt.gold] if prompt.gold >= 0 else gold
        counts.append(given)
    return AnswerRates.of_counts(counts, gold)


def released(setting: Setting) -> Released | None:
    """Return the released counts; None where there are none."""
    file = setting.traces.resolve().parent / "data" / FILE if setting.traces else Path(FILE)
    if not file.is_file():
        return None
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["dataset", "model"])
    pairs = sorted(
        {(row["dataset"], row["model"]) for row in table.to_pylist()},
    )
    logs = {}
    for dataset, model in pairs:
        setting.progress(f"reading {dataset}, {model}")
        log = read_answer_log(file, only={"dataset": dataset, "model": model})
        logs[dataset, model] = {prompt.prompt: prompt for prompt in log}
    return Released(logs)


def generated(seed: int, prompts: int = 200, answers: int = 12) -> list[PromptAnswers]:
    """Return a stand-in: most prompts easy, some with a close rival, some mostly wrong."""
    rng = np.random.default_rng(seed)
    log = []
    for q in range(prompts):
        right = rng.choice([rng.beta(12, 1), rng.beta(5, 4), rng.beta(1, 4)], p=[0.7, 0.2, 0.1])
        others = rng.dirichlet(1.0 / np.arange(1, answers))
        shares = np.concatenate([[right], (1 - right) * others])
        counts = rng.multinomial(100, shares).astype(np.int64)
        kept = np.flatnonzero(counts)
        log.append(
            PromptAnswers(
                str(q), tuple(f"answer {k}" for k in kept), counts[kept],
                np.full(len(kept), np.nan), int(np.flatnonzero(kept == 0)[0]) if 0 in kept else -1,
            )
        )  # fmt: skip
    return log


def limit_claims(data: Released) -> list[Claim]:
    """One sample against the limit of many, by model and data set."""
    gains: dict[str, list[float]] = {}
    for dataset, model in data.logs:
        prompts = data.rates(dataset, [model])
        one = single_correct(prompts, (1.0,)) / len(prompts)
        gains.setdefault(dataset, []).append(limit_correct(prompts, (1.0,)) / len(prompts) - one)
    every = [gain for values in gains.values() for gain in values]
    aime = data.rates("aime2025", [OSS])
    ours = 100 * limit_correct(aime, (1.0,)) / len(aime)
    words = "; ".join(
        f"{dataset} +{100 * min(values):.1f} to +{100 * max(values):.1f}"
        for dataset, values in gains.items()
    )
    return [
        Claim(
            "the limit of majority voting is above one sample for every model and data set",
            "above",
            f"{sum(gain > 0 for gain in every)} of {len(every)}; points gained: {words}",
            "",
            all(gain > 0 for gain in every),
            "exact, from counts of 80 to 160 samples a prompt; holds if all gains are positive",
        ),
        Claim(
            "GPT-OSS-20B in the limit, AIME2025",
            "90.0",
            f"{ours:.1f} (one sample {100 * single_correct(aime, (1.0,)) / len(aime):.1f})",
            "%",
            abs(ours - 90.0) < 0.05,
            "the released counts are of a later version than the paper's",
        ),
    ]


def limit_table(data: Released) -> list[Claim]:
    """The limit of each model beside that of the counts released with the paper."""
    claims = []
    for dataset, earlier in EARLIER.items():
        ours: dict[str, float] = {}
        one: dict[str, float] = {}
        ties = 0
        for model in earlier:
            prompts = data.rates(dataset, [model])
            first_or_tied = (margins(prompts, (1.0,)) >= -TIE).sum()
            ties += int(first_or_tied) - limit_correct(prompts, (1.0,))
            ours[model] = 100 * float(first_or_tied) / len(prompts)
            one[model] = 100 * single_correct(prompts, (1.0,)) / len(prompts)
        apart = max(abs(ours[model] - limit) for model, limit in earlier.items())
        step = 100 / len(data.rates(dataset, list(earlier)))
        claims.append(
            Claim(
                f"one sample and the limit of each model, {dataset}",
                ", ".join(f"{model} {limit:.1f}" for model, limit in earlier.items()),
                ", ".join(f"{model} {one[model]:.1f} to {ours[model]:.1f}" for model in earlier),
                "%",
                bool(apart <= max(step, 1.0) + 0.06),
                "published: limits of the counts released with the paper; ours: of the later ones. "
                f"Ties for first count as right, {ties} in all (elsewhere here they do not). Holds "
                f"within a prompt or a point; {apart:.1f} apart at most",
            )
        )
    return claims


def adaptive_claims(name: str, found: Calibration) -> list[Claim]:
    """How many samples the Bayes factor needs for the accuracy of fixed numbers."""
    claims = []
    curve = [point for point in found.points if point.kind == "bayes factor"]
    fixed = {point.threshold: point for point in found.points if point.kind == "fixed"}
    for n, published in ((10, "3"), (100, "10")):
        wanted = fixed[float(n)]
        point = min(
            (p for p in curve if p.accuracy >= wanted.accuracy - SLACK),
            key=lambda p: p.samples, default=None,
        )  # fmt: skip
        ours = (
            f"{point.samples:.1f} (B = {point.threshold:g}; {wanted.accuracy:.1%} fixed, "
            f"{point.accuracy:.1%} adaptive)"
            if point else "none"
        )  # fmt: skip
        claims.append(
            Claim(
                f"{name}: mean samples that match a fixed {n}",
                f"about {published} on MATH500; 2 to 5 times fewer in general",
                ours,
                "samples",
                bool(point is not None and n / point.samples >= 2),
                "holds at half as many or fewer; match: at most a fifth of a point below, "
                "mean of replays drawn with replacement from the counts, N at most 100"
                + (
                    f". In tokens {wanted.tokens / point.tokens:.1f} times fewer: what takes many "
                    "samples also takes long ones"
                    if point and np.isfinite(point.tokens)
                    else ""
                ),
            )
        )
    return claims


def ensemble_claims(data: Released, setting: Setting) -> list[Claim]:
    """Weights learned by the mixed-integer program against the best single model."""
    pair = data.rates("aime2025", [OSS, NEMOTRON])
    setting.progress("ensembles: AIME2025")
    two = ensemble_weights(pair)
    everyone = ensemble_weights(data.rates("aime2025", data.models("aime2025")))
    gpqa = data.rates("gpqa_diamond", list(GPQA_WEIGHTS))
    setting.progress("ensembles: GPQA-Diamond")
    best = ensemble_weights(gpqa)
    single = max(limit_correct(gpqa, corner) for corner in np.eye(len(GPQA_WEIGHTS)))
    theirs = limit_correct(gpqa, list(GPQA_WEIGHTS.values()))
    weights = ", ".join(
        f"{model} {weight:.3f}"
        for model, weight in zip(GPQA_WEIGHTS, best.weights, strict=True) if weight > 5e-4
    )  # fmt: skip
    return [
        Claim(
            "GPT-OSS-20B and Nemotron-Nano-9B together, AIME2025",
            "93.3",
            f"{100 * two.correct / len(pair):.1f}, proven the most (all {len(data.models('aime2025'))} "
            f"models together {100 * everyone.correct / len(pair):.1f})",
            "%",
            bool(100 * two.correct / len(pair) >= 93.25),
            "the released counts do not give it: on the prompts that GPT-OSS misses no weights make "
            "the right answer first",
        ),
        Claim(
            "five models together are above the best single one, GPQA-Diamond",
            "above",
            f"{best.correct} against {single} of {len(gpqa)}; the published weights {theirs}",
            "prompts",
            bool(best.correct > single and theirs > single),
            f"weights of the largest margin ({best.margin:.4f}): {weights}; "
            f"{best.seconds:.1f} s, {'proven' if best.proven else 'not proven'}",
        ),
    ]


def few_prompts(data: Released, setting: Setting, draws: int = 40) -> Claim:
    """Weights learned on five prompts."""
    models = list(GPQA_WEIGHTS)
    prompts = data.rates("gpqa_diamond", models)
    rng = np.random.default_rng(setting.seed)
    shares, singles = [], []
    for draw in range(draws):
        setting.progress(f"weights of five prompts: {draw} of {draws}")
        order = rng.permutation(len(prompts))
        found = ensemble_weights([prompts[i] for i in order[:5]], seed=setting.seed)
        rest = [prompts[i] for i in order[5:]]
        shares.append(limit_correct(rest, found.weights) / len(rest))
        singles.append(max(limit_correct(rest, c) for c in np.eye(len(models))) / len(rest))
    mean, single = float(np.mean(shares)), float(np.mean(singles))
    error = float(np.std(np.subtract(shares, singles), ddof=1) / draws**0.5)
    return Claim(
        "weights learned on five prompts reach the best single model, GPQA-Diamond",
        "reach",
        f"{mean:.1%} against {single:.1%}",
        "of the other prompts",
        bool(mean >= single - 2 * error),
        f"mean of {draws} draws; holds if not below by two standard errors ({error:.1%})",
    )


def transfer(data: Released, setting: Setting) -> Claim:
    """Weights of AIME2024 on AIME2025, all sets of three models."""
    both = [m for m in data.models("aime2024") if m in data.models("aime2025")]
    sets = list(combinations(range(len(both)), 3))
    train, test = (data.rates(name, both) for name in ("aime2024", "aime2025"))
    level = above = 0
    for at, chosen in enumerate(sets):
        setting.progress(f"transfer: {at} of {len(sets)} sets of models")
        known = [AnswerRates(p.rates[list(chosen)], p.gold) for p in train]
        new = [AnswerRates(p.rates[list(chosen)], p.gold) for p in test]
        found = ensemble_weights(known, time_limit_s=10)
        reached = limit_correct(new, found.weights)
        single = max(limit_correct(new, corner) for corner in np.eye(3))
        level += reached >= single
        above += reached > single
    share = level / len(sets)
    return Claim(
        "weights learned on AIME2024 are as good as the best single model on AIME2025",
        "64.2 %",
        f"{100 * share:.1f} % of {len(sets)} sets; strictly better in {above}",
        "",
        bool(abs(share - 0.642) <= 0.05),
        "holds within 5 points; the published share can only be of 'at least as good'. The best "
        "single model is picked on AIME2025 itself",
    )


def run(setting: Setting) -> Reproduction:
    """Rerun the experiments."""
    data = released(setting)
    if data is None:
        found = calibrate(generated(setting.seed), samples=100, trials=20, seed=setting.seed,
                          progress=setting.progress)  # fmt: skip
        missing = [
            Claim(what, published, "not run", "", None, f"needs data/{FILE} beside --traces")
            for what, published in (
                ("GPT-OSS-20B in the limit, AIME2025", "90.0 %"),
                ("GPT-OSS-20B and Nemotron-Nano-9B together, AIME2025", "93.3 %"),
                ("weights learned on AIME2024 are as good on AIME2025", "64.2 %"),
            )
        ]
        claims = [*adaptive_claims("generated prompts", found), *missing]
        return Reproduction(tuple(claims), {"generated": "".join(charts(found))})
    claims = [*limit_claims(data), *limit_table(data)]
    drawn: dict[str, str] = {}
    for dataset, model, trials in CURVES:
        log = list(data.logs[dataset, model].values())
        found = calibrate(log, samples=100, trials=trials, seed=setting.seed,
                          progress=setting.progress)  # fmt: skip
        name = f"{dataset}, {model}"
        claims += adaptive_claims(name, found)
        drawn[name] = "".join(charts(found))
    claims += ensemble_claims(data, setting)
    claims += [few_prompts(data, setting), transfer(data, setting)]
    return Reproduction(tuple(claims), drawn)
