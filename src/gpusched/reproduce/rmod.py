"""Robust multi-objective decoding (RMOD, arXiv 2503.08796), rerun on small language models.

The paper decodes gemma-2-2b with learnt value networks on HH, UltraFeedback and ValuePrism. Ours are
Markov chains, whose values are exact, and transformers trained from scratch with learnt values;
objectives are rewards for tokens, drawn so that they conflict, and standardised.
"""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from gpusched.report.svg import Line, line_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.reproduce.rmod_rules import (
    BLOCK,
    CANDIDATES,
    RULES,
    STRENGTH,
    Outcomes,
    conflicting_chain,
    settings,
    win_rate,
)
from gpusched.sampling.controlled.markov import decode, sample_paths, soup
from gpusched.sampling.controlled.weights import published_steps, robust_weights
from gpusched.statistics import mean_interval

Floats = NDArray[np.float64]

TOKENS, LENGTH, PROMPTS = 16, 32, 250
SOUP_STRENGTH = 1.0
"""Of the policies averaged: at 10 each would hardly resemble the model."""
SEEDS = 8
OBJECTIVES = (2, 3, 5, 10)
BLOCKS = (1, 2, 4, 8, 16, 32)
STRENGTHS = (0.1, 0.5, 1.0, 3.0, 10.0)


def run(setting: Setting) -> Reproduction:
    """Rerun the paper's experiments."""
    main = {g: _chains(setting, g) for g in OBJECTIVES}
    setting.progress("numbers of objectives")
    block_claim, block_chart = _block_lengths(setting)
    claims = (*_main_claims(main), block_claim, _strength(setting), *_transformers(setting))
    margin = [main[g].difference("RMOD", "CD, uniform") for g in OBJECTIVES]
    chart = line_chart(
        [
            Line(
                name, np.array(OBJECTIVES, np.float64),
                np.array([main[g].mean(name) for g in OBJECTIVES]),
                np.array([mean_interval(main[g].win_rate[name])[1] for g in OBJECTIVES]),
            )
            for name in ("reference", "CD, uniform", "soup", "maximin", "RMOD, strength 1", "RMOD")
        ],
        title="Worst-case win rate against the reference, % (bands: 95 %)",
        x_label="objectives", y_label="%",
    )  # fmt: skip
    gains = line_chart(
        [Line("RMOD less CD, uniform", np.array(OBJECTIVES, np.float64),
              np.array([m for m, _ in margin]), np.array([h for _, h in margin]))],
        title="Gain in worst-case win rate, points", x_label="objectives", y_label="points",
    )  # fmt: skip
    return Reproduction(
        claims, {"rmod-win-rate": chart, "rmod-gain": gains, "rmod-block": block_chart}
    )


def _chains(setting: Setting, objectives: int, seeds: int = SEEDS) -> Outcomes:
    rates: dict[str, list[float]] = {}
    worst: dict[str, list[float]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng([setting.seed, objectives, seed])
        model = conflicting_chain(rng, objectives, TOKENS, LENGTH)
        prompts = rng.integers(TOKENS, size=PROMPTS)
        reference = model.earned(model.sample(prompts, LENGTH, rng))
        answers = {
            name: decode(model, prompts, LENGTH, settings(objectives, **given), rng)[0]
            for name, given in RULES.items()
        }
        answers["soup"] = sample_paths(soup(model, LENGTH, SOUP_STRENGTH), prompts, rng)
        for name, tokens in answers.items():
            earned = model.earned(tokens)
            rates.setdefault(name, []).append(win_rate(earned, reference))
            worst.setdefault(name, []).append(float(earned.min(1).mean()))
    setting.progress(f"{objectives} objectives")
    return Outcomes(*({k: np.array(v) for k, v in d.items()} for d in (rates, worst)))


def _main_claims(main: dict[int, Outcomes]) -> tuple[Claim, ...]:
    two, five, ten = main[2], main[5], main[10]
    gain, half = two.difference("RMOD", "CD, uniform")
    more, more_half = five.difference("RMOD", "CD, uniform")
    weak, weak_half = two.difference("RMOD, strength 1", "CD, uniform")
    soup_gain, soup_half = two.difference("soup", "CD, uniform")
    reward, reward_half = two.worst_difference("RMOD", "CD, uniform")
    against = ", ".join(
        "{} objectives: {:+.3f} ± {:.3f}".format(g, *o.worst_difference("RMOD", "maximin"))
        for g, o in main.items()
    )
    best = max(o.difference("RMOD", "CD, uniform")[0] for o in main.values())
    large, large_half = ten.difference("RMOD", "CD, uniform")
    few, few_half = two.worst_difference("RMOD, strength 1, 10 steps", "RMOD, strength 1")
    rates = ", ".join(f"{name} {two.mean(name):.1f}" for name in (*RULES, "soup"))
    set_up = (
        f"{SEEDS} Markov chains of {TOKENS} tokens with exact values, {PROMPTS} prompts each, K = "
        f"{CANDIDATES}, B = {BLOCK}, strength {STRENGTH:g}; the paper: HH, gemma-2-2b, learnt values"
    )
    return (
        Claim(
            "worst-case win rate, two objectives: RMOD above CD-Uniform", "59.1 and 57.6",
            f"{two.mean('RMOD'):.1f} and {two.mean('CD, uniform'):.1f}", "%", gain - half > 0,
            f"difference {gain:+.1f} ± {half:.1f} points, at strength 1 {weak:+.1f} ± {weak_half:.1f}; "
            f"{set_up}. All: {rates}",
        ),
        Claim(
            "worst-case win rate, five objectives: RMOD above CD-Uniform", "above",
            f"{five.mean('RMOD'):.1f} and {five.mean('CD, uniform'):.1f}", "%", more - more_half > 0,
            f"difference {more:+.1f} ± {more_half:.1f} points",
        ),
        Claim(
            "policies averaged (rewarded soups, MOD) below CD-Uniform in worst-case win rate",
            "below", f"{soup_gain:+.1f} ± {soup_half:.1f}", "points", soup_gain + soup_half < 0,
            f"average of the logits of exact soft-optimal policies of strength {SOUP_STRENGTH:g}, "
            "sampled once: no candidates are spent",
        ),
        Claim(
            "gain over uniform weights in worst-case win rate, most over numbers of objectives",
            "up to 20", f"{best:.1f}", "points", best >= 5.0, "what gains of up to 20 % are of is "
            "not stated in what we could read; we ask for five points",
        ),
        Claim(
            "mean over prompts of the worst reward: RMOD above CD-Uniform", "above",
            f"{reward:+.3f} ± {reward_half:.3f}", "standard deviations", reward - reward_half > 0,
            f"but below the plain choice of the candidate whose worst value is best: {against}. "
            "The weights are worst for the mix of candidates; the greedy choice is one of them",
        ),
        Claim(
            "the advantage shrinks as objectives grow in number, 2 to 10", "shrinks",
            f"{gain:+.1f} ± {half:.1f} with 2, {large:+.1f} ± {large_half:.1f} with 10", "points",
            large + large_half < gain - half, "over CD-Uniform; equal weights serve many conflicting "
            "objectives ever worse",
        ),
        Claim(
            "ten gradient steps serve as well as solving for the weights", "10 iterations",
            f"{few:+.3f} ± {few_half:.3f}", "standard deviations of the worst reward",
            few + few_half > 0, "ten steps of the published code less exact weights, both at "
            "strength 1: stopping early keeps weights even, which here acts as a larger strength",
        ),
    )  # fmt: skip


def _block_lengths(setting: Setting) -> tuple[Claim, str]:
    found = np.empty((len(BLOCKS), SEEDS))
    for seed in range(SEEDS):
        rng = np.random.default_rng([setting.seed, 77, seed])
        model = conflicting_chain(rng, 2, TOKENS, LENGTH)
        prompts = rng.integers(TOKENS, size=PROMPTS)
        for i, block in enumerate(BLOCKS):
            tokens, _ = decode(model, prompts, LENGTH, settings(2, block_tokens=block), rng)
            found[i, seed] = model.earned(tokens).min(1).mean()
    setting.progress("block lengths")
    means = found.mean(1)
    chart = line_chart(
        [Line("RMOD", np.array(BLOCKS, np.float64), means,
              np.array([mean_interval(row)[1] for row in found]))],
        title="Mean worst reward by block length, 32 tokens in all", x_label="tokens a block",
        y_label="standard deviations", log_x=True,
    )  # fmt: skip
    falls = bool((np.diff(means) < 0).all())
    claim = Claim(
        "blocks: the shortest tried is the best", "16 of 16 to 256",
        ", ".join(f"{b}: {m:.2f}" for b, m in zip(BLOCKS, means, strict=True)),
        "standard deviations of the worst reward", falls,
        "answers of 32 tokens, so blocks of 1 to 32; with exact values more choices are never "
        "worse, and choices cost a scoring each",
    )  # fmt: skip
    return claim, chart


def _strength(setting: Setting) -> Claim:
    """How even the weights are, by strength: solved, and after ten published steps."""
    rng = np.random.default_rng([setting.seed, 5])
    values = rng.normal(size=(2000, CANDIDATES, 3))
    even: dict[str, list[float]] = {"solved": [], "ten steps": []}
    for strength in STRENGTHS:
        for name, w in (
            ("solved", robust_weights(values, strength).weights),
            ("ten steps", published_steps(values, strength)),
        ):
            even[name].append(float(w.max(-1).mean()))
    words = "; ".join(
        f"{name} " + ", ".join(f"{s:g}: {x:.2f}" for s, x in zip(STRENGTHS, row, strict=True))
        for name, row in even.items()
    )
    return Claim(
        "weights are near uniform at strength 0.1 and concentrate at 10",
        "0.1 uniform, 10 concentrated",
        f"largest of three weights, solved: {even['solved'][0]:.2f} at 0.1, {even['solved'][-1]:.2f} at 10",
        "", even["solved"][0] < even["solved"][-1],
        f"it is the reverse for the game itself; ten steps not scaled by strength stop early or "
        f"overshoot, which is what the paper saw. {words}",
    )  # fmt: skip


def _transformers(setting: Setting) -> tuple[Claim, ...]:
    if find_spec("torch") is None:
        return (
            Claim(
                "learnt values, five objectives: RMOD above CD-Uniform", "above",
                "not run", "%", None,
                "torch is not installed; install it with: pip install 'gpusched[torch]'",
            ),
        )  # fmt: skip
    from gpusched.reproduce.rmod_transformers import transformer_claims

    return transformer_claims(setting)
