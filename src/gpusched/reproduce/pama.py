"""Pareto multi-objective alignment (PAMA, arXiv 2508.07768), rerun on small language models.

The paper fine-tunes GPT-2, GPT-2 XL and LLaMA-2-7B by PPO on classifiers' rewards and compares with
fixed equal weights (MORLHF) and MGDA-UB. Ours are policies over short texts, tables of logits and
transformers from scratch, trained by group policy gradient on rewards computed from the text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpusched.alignment.combine import combine
from gpusched.alignment.normalise import group_advantages
from gpusched.report.svg import Line, line_chart
from gpusched.reproduce.claim import Claim, Reproduction, Setting
from gpusched.reproduce.pama_rewards import LENGTH, TOKENS, hypervolume, rewards_of
from gpusched.sampling.controlled.markov import sample_paths
from gpusched.statistics import mean_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UPDATES, PROMPTS, GROUP = 150, 8, 16
RATE = 0.5
SEEDS = 8
MODES: dict[str, dict[str, Any]] = {
    "PAMA, token": {"mode": "token"},
    "PAMA, batch_qp": {"mode": "batch_qp"},
    "PAMA, batch_qp with Noon": {"mode": "batch_qp", "noon": True},
    "PAMA, batch_scalar": {"mode": "batch_scalar"},
    "linear (MORLHF)": {"mode": "linear"},
    "MGDA": {"mode": "mgda"},
    "GAPO": {"mode": "gapo"},
    "softmin": {"mode": "softmin"},
    "tchebycheff": {"mode": "tchebycheff"},
    "GDPO": {"mode": "gdpo"},
}
PAPER = "PAMA, token"
SKEWED: dict[str, dict[str, Any]] = {
    PAPER: {"mode": "token"},
    "not standardised": {"mode": "token", "raw": True},
    "equal weights, not standardised": {"mode": "linear", "raw": True},
}


def run(setting: Setting) -> Reproduction:
    """Rerun the paper's experiments."""
    claims: list[Claim] = []
    even, curves = _compare(setting, MODES)
    skewed, _ = _compare(setting, SKEWED, skew=100.0)
    claims += _main_claims(even, skewed)
    claims += [_stall(), _scalar(setting), _cost()]
    claims += _transformers(setting)
    chart = line_chart(
        [Line(name, np.arange(1.0, UPDATES + 1), curves[name]) for name in
         ("PAMA, token", "PAMA, batch_qp", "linear (MORLHF)", "MGDA", "PAMA, batch_scalar")],
        title="Least of two mean rewards by update", x_label="updates", y_label="reward",
    )  # fmt: skip
    return Reproduction(tuple(claims), {"pama-least": chart})


# ---- policies that are tables of logits


@dataclass(frozen=True)
class Trained:
    """Mean rewards at the end, shape (seeds, 2), by mode; the untrained policy's under ``start``."""

    final: Mapping[str, Floats]

    def least(self, name: str) -> Floats:
        """Return the least of the final rewards of each seed."""
        return np.asarray(self.final[name].min(1))

    def volume(self, name: str) -> Floats:
        """Return each seed's hypervolume over the untrained policy's rewards."""
        return np.array(
            [hypervolume(*pair) for pair in zip(self.final[name], self.final["start"], strict=True)]
        )


def _compare(
    setting: Setting, modes: Mapping[str, Mapping[str, Any]], skew: float = 1.0
) -> tuple[Trained, dict[str, Floats]]:
    final: dict[str, list[Floats]] = {}
    curves: dict[str, list[Floats]] = {}
    for seed in range(SEEDS):
        for name, given in modes.items():
            rng = np.random.default_rng([setting.seed, seed])
            path = train_table(rng, given, skew)
            final.setdefault(name, []).append(path[-10:].mean(0))
            curves.setdefault(name, []).append((path / [1.0, skew]).min(1))
            if name == PAPER:
                final.setdefault("start", []).append(path[0])
        setting.progress(f"tables of logits, second reward x {skew:g}: {seed + 1} of {SEEDS}")
    scale = np.array([1.0, skew])
    return (
        Trained({name: np.array(rows) / scale for name, rows in final.items()}),
        {name: np.mean(rows, 0) for name, rows in curves.items()},
    )


def train_table(rng: np.random.Generator, given: Mapping[str, Any], skew: float) -> Floats:
    """Train a table of logits (T, A, A) by sampling; return mean rewards by update, shape (U, 2)."""
    logits = 0.1 * rng.normal(size=(LENGTH, TOKENS, TOKENS))
    path = np.empty((UPDATES, 2))
    for update in range(UPDATES):
        e = np.exp(logits - logits.max(-1, keepdims=True))
        policy = e / e.sum(-1, keepdims=True)
        first = np.repeat(rng.integers(TOKENS, size=PROMPTS), GROUP)
        texts = sample_paths(policy, first, rng)
        rewards = rewards_of(texts, skew)
        path[update] = rewards.mean(0)
        raw = given.get("raw", False)
        advantages = group_advantages(rewards, GROUP, scale=not raw)
        before = np.concatenate([first[:, None], texts[:, :-1]], 1)
        options = dict(given) | {"normalise": False}
        options.pop("raw", None)
        if given["mode"] in ("mgda", "gapo"):
            each = np.stack([_gradient(policy, before, texts, a).ravel() for a in advantages.T])
            options["gram"] = each @ each.T
        if given["mode"] == "tchebycheff":
            options |= {"levels": path[update] / [1.0, skew], "ideal": [1.0, 1.0]}
        weights = combine(advantages, **options).advantages
        logits += RATE * LENGTH * _gradient(policy, before, texts, weights)
    return path


def _gradient(policy: Floats, before: Ints, texts: Ints, advantages: Floats) -> Floats:
    """Return the mean over texts of advantage times the gradient of their log-probability."""
    share = np.broadcast_to(advantages[:, None], texts.shape).ravel() / len(texts)
    place = np.arange(LENGTH) * TOKENS + before
    found = np.bincount((place * TOKENS + texts).ravel(), share, policy.size)
    visits = np.bincount(place.ravel(), share, policy.size // TOKENS)
    return found.reshape(policy.shape) - visits.reshape(policy.shape[:2])[..., None] * policy


def _figure(sample: Floats) -> str:
    mean, half = mean_interval(sample)
    return f"{mean:.3f} ± {half:.3f}"


def _main_claims(even: Trained, skewed: Trained) -> list[Claim]:
    rows = {name: f"{name} {_figure(even.least(name))}" for name in MODES}
    volumes = ", ".join(f"{name} {_figure(even.volume(name))}" for name in MODES)
    over_linear = mean_interval(even.least(PAPER) - even.least("linear (MORLHF)"))
    over_mgda = mean_interval(even.least(PAPER) - even.least("MGDA"))
    raw = skewed.least("not standardised")
    set_up = (
        f"{SEEDS} seeds of {UPDATES} updates, {PROMPTS} groups of {GROUP}, table of logits, exact "
        "rewards of the text, advantages standardised by group, so that scales are no handicap to any; "
        "the paper: PPO on GPT-2. For two standardised objectives batch_qp without Noon is equal "
        "weights, by symmetry"
    )
    return [
        Claim(
            "least of two mean rewards: PAMA above fixed equal weights",
            "2.32 and 1.62 (sentiment)", f"{even.least(PAPER).mean():.3f} and "
            f"{even.least('linear (MORLHF)').mean():.3f}", "reward", over_linear[0] - over_linear[1] > 0,
            f"difference {over_linear[0]:+.3f} ± {over_linear[1]:.3f}; {set_up}. All: "
            + ", ".join(rows.values()),
        ),
        Claim(
            "least of two mean rewards: PAMA above MGDA", "2.32 and 1.47 (sentiment)",
            f"{even.least(PAPER).mean():.3f} and {even.least('MGDA').mean():.3f}", "reward",
            over_mgda[0] - over_mgda[1] > 0,
            f"difference {over_mgda[0]:+.3f} ± {over_mgda[1]:.3f}; MGDA by parameters here, by "
            "activations (MGDA-UB) in the paper",
        ),
        Claim(
            "PAMA is best on both rewards (GPT-2)", "sentiment and length",
            f"hypervolume {_figure(even.volume(PAPER))}, best of the others "
            + _figure(even.volume(_best(even))), "reward²",
            bool((even.volume(PAPER) - even.volume(_best(even))).mean() > 0),
            f"best other: {_best(even)}. All: {volumes}",
        ),
        Claim(
            "rewards of different scales: the combination does not depend on them", "not stated",
            f"{_figure(skewed.least(PAPER))}, not standardised {_figure(raw)}", "least reward",
            bool(np.allclose(skewed.final[PAPER], even.final[PAPER], atol=1e-6)),
            "second reward a hundred times as large: standardised by group the run is the same; not "
            "standardised, the least advantage is nearly always the first one's; fixed equal weights "
            "not standardised get " + _figure(skewed.least("equal weights, not standardised")),
        ),
    ]  # fmt: skip


def _best(found: Trained) -> str:
    return max((n for n in MODES if n != PAPER), key=lambda n: float(found.volume(n).mean()))


# ---- what follows from the formulas


def _stall() -> Claim:
    """Rewards (1, 0), (0, 1), (.45, .45) from uniform: every advantage has a negative side."""
    table = np.array([(1.0, 0.0), (0.0, 1.0), (0.45, 0.45)])
    ends = {}
    for name, options in (("token", {}), ("batch_qp", {"noon": False})):
        logits = np.zeros(3)
        for _ in range(3000):
            p = np.exp(logits - logits.max())
            p /= p.sum()
            mode: Any = name
            a = combine(table - p @ table, mode=mode, normalise=False, **options).advantages
            logits += 0.5 * p * (a - p @ a)
        p = np.exp(logits - logits.max())
        ends[name] = float((p / p.sum() @ table).min())
    return Claim(
        "it converges to Pareto-stationary points", "theorem 2",
        f"least reward {ends['token']:.4f}; {ends['batch_qp']:.4f} without Noon, by batch_qp", "reward",
        ends["token"] > 0.499,
        "three arms, exact gradients: with negative advantages dropped no arm is better on both, so "
        "it never leaves (.4833, .4833), where another direction improves both; the theorem is "
        "about the surrogate without negative advantages",
    )  # fmt: skip


def _scalar(setting: Setting) -> Claim:
    rng = np.random.default_rng([setting.seed, 9])
    sizes = {}
    for name in ("token", "batch_scalar"):
        norms = []
        for _ in range(200):
            p = rng.dirichlet(np.ones(6))
            a = rng.normal(size=(6, 2))
            mode: Any = name
            s = combine(a - p @ a, mode=mode, normalise=False).advantages
            norms.append(np.abs(p * (s - p @ s)).sum())
        sizes[name] = float(np.max(norms))
    return Claim(
        "one scalar a batch (a third-party port's reading) trains the policy", "a working trainer",
        f"largest expected gradient {sizes['batch_scalar']:.1e}, by token {sizes['token']:.2f}", "",
        sizes["batch_scalar"] > 1e-9,
        "200 random bandits on-policy: the same number for every token multiplies E[grad log p] = "
        "0, so that reading carries no credit; we keep it as a baseline only",
    )  # fmt: skip


def _cost() -> Claim:
    rng = np.random.default_rng(0)
    seconds = []
    counts = (2, 4, 8, 16)
    combine(np.ones((2, 2), np.float32))
    for n in counts:
        a = rng.normal(size=(200_000, n)).astype(np.float32)
        best = np.inf
        for _ in range(5):
            begun = process_time()
            combine(a)
            best = min(best, process_time() - begun)
        seconds.append(best)
    slope = float(np.polyfit(np.log(counts), np.log(seconds), 1)[0])
    return Claim(
        "time grows as the number of objectives", "O(n)",
        ", ".join(f"{n}: {1e3 * s:.1f}" for n, s in zip(counts, seconds, strict=True)), "ms",
        slope < 1.3,
        f"200,000 tokens; exponent {slope:.2f}; MGDA needs a backward pass an objective besides "
        "(python benchmarks/alignment.py)",
    )  # fmt: skip


def _transformers(setting: Setting) -> list[Claim]:
    if find_spec("torch") is None:
        return [
            Claim(
                "on transformers: least of two mean rewards, PAMA above fixed equal weights",
                "2.32 and 1.62 (sentiment)", "not run", "reward", None,
                "torch is not installed; install it with: pip install 'gpusched[torch]'",
            )
        ]  # fmt: skip
    from gpusched.reproduce.pama_transformers import transformer_claims

    return transformer_claims(setting)
