"""The Safety Game's statements, tested on candidates of a toy language with noisy probes."""

import numpy as np

from gpusched.report.svg import Line, line_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.reproduce.toy_language import Floats, noisy, scored_candidates
from gpusched.sampling.mixing_baselines import best_of_n, filtered
from gpusched.sampling.running_budget import RunningBudget
from gpusched.sampling.safe_mixing import MixingRules, mix, penalised
from gpusched.solve.milp import Program

PROMPTS, CANDIDATES = 10_000, 8
BUDGET, ERROR = 0.1, 0.02
THRESHOLDS = np.linspace(0.0, 1.0, 201)
BUDGETS = np.linspace(0.0, 0.5, 26)
NOT_HERE = (
    ("HHH, overall accuracy", "72.9 %"),
    ("SafetyBench, accuracy", "60.13 %"),
    ("TruthfulQA, BLEU accuracy", "54.7 %"),
    ("SORRY-Bench", "5.1"),
)
NOTE = (
    f"{PROMPTS:,} prompts, {CANDIDATES} candidates of a toy language of 16 words and a refusal; use "
    f"and harm are computed from the text, probes see them off by up to {ERROR}"
)


class Bench:
    """True and seen scores, shape (prompts, candidates)."""

    def __init__(self, seed: int) -> None:
        self.helpful, self.harmful = scored_candidates(PROMPTS, CANDIDATES, seed)
        rng = np.random.default_rng(seed + 1)
        self.seen_helpful, self.seen_harmful = (
            noisy(scores, ERROR, rng) for scores in (self.helpful, self.harmful)
        )
        self.rows = np.arange(PROMPTS)
        self.extra = self.harmful - self.harmful[:, :1]

    def lotteries(self, budget: float, error: float) -> tuple[Floats, Floats]:
        """Return true helpfulness and extra harm expected of each prompt."""
        rules = MixingRules(budget, max_extra_harm=1.0, score_error=error)
        table = mix(self.seen_helpful, self.seen_harmful, rules).probabilities(1 + CANDIDATES)
        return (table * self.helpful).sum(axis=1), (table * self.extra).sum(axis=1)

    def of(self, chosen: np.ndarray) -> tuple[float, float]:
        """Return mean true helpfulness and extra harm of candidates."""
        return (
            float(self.helpful[self.rows, chosen].mean()),
            float(self.extra[self.rows, chosen].mean()),
        )

    def filters(self) -> list[tuple[float, float]]:
        """Return helpfulness and extra harm of the filter by threshold."""
        return [
            self.of(filtered(self.seen_helpful, self.seen_harmful, threshold=threshold))
            for threshold in THRESHOLDS
        ]


def safety(bench: Bench) -> list[Claim]:
    """The budget of every prompt, with and without errors of the scores."""
    _, robust = bench.lotteries(BUDGET, ERROR)
    _, trusting = bench.lotteries(BUDGET, 0.0)
    exact = mix(bench.helpful, bench.harmful, MixingRules(BUDGET, 1.0))
    alone = bench.extra[bench.rows, best_of_n(bench.seen_helpful, bench.seen_harmful)]
    return [
        Claim(
            "expected harm exceeds the refusal's by at most the budget on every prompt, true scores",
            f"at most {BUDGET}",
            f"{exact.extra_harm.max():.4f} at most",
            "",
            bool(exact.extra_harm.max() <= BUDGET + 1e-12),
            f"{NOTE}. Best-of-n exceeds it on {(alone > BUDGET).mean():.0%} of the prompts",
        ),
        Claim(
            "with scores off by up to e the budget holds if 2e is held back",
            f"at most {BUDGET}",
            f"{robust.max():.4f} at most; {trusting.max():.4f} without",
            "",
            bool(robust.max() <= BUDGET + 1e-12 < trusting.max()),
            "here 2e is added to each candidate's harm, which holds back less than the paper's "
            "budget less 2e, since the refusal's part of a lottery has no error",
        ),
    ]


def exactness(bench: Bench, sample: int = 300) -> list[Claim]:
    """The closed form against a solver, and the game against its limit."""
    h, r = bench.helpful[:sample], bench.harmful[:sample]
    found = mix(h, r, MixingRules(BUDGET, max_extra_harm=1.0))
    worst = 0.0
    for q in range(sample):
        program = Program(maximize=True)
        w = program.variables(1 + CANDIDATES, cost=h[q] - h[q, 0], upper=1.0)
        program.row(w, lower=1.0, upper=1.0)
        program.row(w, r[q] - r[q, 0], upper=BUDGET)
        worst = max(worst, abs(program.solve().objective - float(found.helpfulness[q])))
    same = []
    for factor in (1.001, 0.999):
        agree = [
            float(
                penalised(h[q], r[q], budget=BUDGET, weight=factor * float(found.price[q]))
                .helpfulness[0] - found.helpfulness[q]
            )
            for q in range(sample) if found.price[q] > 0
        ]  # fmt: skip
        same.append(float(np.mean(np.abs(agree) < 1e-12)))
    return [
        Claim(
            "the lottery is a small linear program over the candidates",
            "solved",
            f"{worst:.0e} from HiGHS at most, {sample} prompts",
            "",
            bool(worst < 1e-7),
            "in closed form: at most two candidates, the ends of the edge of the upper concave hull "
            "of (harm, helpfulness) that crosses the budget",
        ),
        Claim(
            "the penalised game gives the capped lottery for odds of an adversary large enough",
            "large enough",
            f"{same[0]:.0%} of prompts just above the cap's shadow price, {same[1]:.0%} just below",
            "",
            bool(same[0] == 1.0 and same[1] < 1.0),
            "no guess is needed: large enough is the slope of the hull at the budget",
        ),
    ]


def against_filters(bench: Bench) -> list[Claim]:
    """Helpfulness against a filter: of the same guarantee, and of the same mean harm."""
    helpful, extra = bench.lotteries(BUDGET, ERROR)
    within = bench.seen_harmful - bench.seen_harmful[:, :1] <= BUDGET - 2 * ERROR
    same = np.where(within, bench.seen_helpful, -1.0).argmax(axis=1)
    gain = helpful - bench.helpful[bench.rows, same]
    error = float(gain.std(ddof=1) / PROMPTS**0.5)
    rivals = [h for h, e in bench.filters() if e <= extra.mean()]
    running = RunningBudget(float(extra.mean()), max_extra_harm=1.0, step=0.2)
    chosen = np.array([
        running.choose(h, r) for h, r in zip(bench.seen_helpful, bench.seen_harmful, strict=True)
    ])  # fmt: skip
    priced, priced_extra = bench.of(chosen)
    return [
        Claim(
            "more helpful than a filter of the same guarantee on every prompt",
            "more",
            f"{helpful.mean():.3f} against {bench.of(same)[0]:.3f}",
            "",
            bool(gain.mean() > 4 * error),
            f"{NOTE}. Mean gain {gain.mean():.3f}, standard error {error:.4f}; holds beyond four",
        ),
        Claim(
            "more helpful than a filter of the same mean harm, which promises nothing of a prompt",
            "more",
            f"{helpful.mean():.3f} against {max(rivals):.3f} at mean extra harm {extra.mean():.3f}",
            "",
            bool(helpful.mean() > max(rivals)),
            "a threshold spends harm where it helps most, across prompts, which a budget for each "
            f"prompt forbids. One budget for all prompts, by the same shadow price, gives {priced:.3f} "
            f"at {priced_extra:.3f} (`RunningBudget`)",
        ),
    ]


def judges(bench: Bench, seed: int) -> Claim:
    """What scores are worth as they get worse."""
    rng = np.random.default_rng(seed + 2)
    gains, broken = [], []
    errors = (0.0, 0.1, 0.2, 0.4)
    for error in errors:
        h, r = (noisy(scores, error, rng) for scores in (bench.helpful, bench.harmful))
        for held_back in (False, True):
            rules = MixingRules(BUDGET, 1.0, score_error=error if held_back else 0.0)
            table = mix(h, r, rules).probabilities(1 + CANDIDATES)
            if held_back:
                gains.append(float((table * bench.helpful).sum(axis=1).mean()))
            else:
                broken.append(float(((table * bench.extra).sum(axis=1) > BUDGET + 1e-12).mean()))
    return Claim(
        "a model that cannot judge its answers gives bad lotteries",
        "worse",
        "helpfulness with 2e held back " + " / ".join(f"{gain:.3f}" for gain in gains)
        + "; without, prompts over the budget " + " / ".join(f"{share:.0%}" for share in broken),
        "",
        bool(np.all(np.diff(broken) > 0) and np.all(np.diff(gains) < 0)),
        "scores off by up to e = " + " / ".join(f"{error:g}" for error in errors)
        + "; holds if ever more prompts are over the budget, or less helpful where it is kept",
    )  # fmt: skip


def chart(bench: Bench) -> str:
    """Return helpfulness against mean extra harm: lotteries, filters, best-of-n."""
    filters = np.array(bench.filters())
    mixes = np.array([
        [figure.mean() for figure in bench.lotteries(budget, ERROR)] for budget in BUDGETS
    ])  # fmt: skip
    priced = []
    for budget in BUDGETS[1:]:
        running = RunningBudget(float(budget), max_extra_harm=1.0, step=0.2)
        part = zip(bench.seen_helpful[:2000], bench.seen_harmful[:2000], strict=True)
        chosen = np.array([running.choose(h, r) for h, r in part])
        at = np.arange(len(chosen))
        priced.append((bench.helpful[at, chosen].mean(), bench.extra[at, chosen].mean()))
    running_line = np.array(sorted(priced, key=lambda point: point[1]))
    return line_chart(
        [
            Line("lottery, budget for each prompt", mixes[:, 1], mixes[:, 0]),
            Line("filter, any threshold", filters[:, 1], filters[:, 0]),
            Line("one price for all prompts", running_line[:, 1], running_line[:, 0]),
        ],
        title="Helpfulness against mean extra harm", x_label="mean harm beyond the refusal's",
        y_label="mean helpfulness",
    )  # fmt: skip


def run(setting: Setting) -> Reproduction:
    """Test the statements; the published benchmarks need weights of models."""
    setting.progress("candidates of the toy language")
    bench = Bench(setting.seed)
    claims = [*safety(bench), *exactness(bench), *against_filters(bench)]
    setting.progress("worse probes")
    claims.append(judges(bench, setting.seed))
    claims += [
        Claim(
            name, published, "not run", "", None, "needs language models and the benchmark's texts"
        )
        for name, published in NOT_HERE
    ]
    setting.progress("chart")
    return Reproduction(tuple(claims), {"frontier": chart(bench)})
