"""RMOD on transformers trained from scratch, with learnt values; needs torch."""

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpusched.reproduce.claim import Claim, Setting
from gpusched.reproduce.rmod_rules import RULES, Outcomes, conflicting_chain, settings, win_rate
from gpusched.reproduce.tiny_transformer import TinyTransformer, sample, train_language_model
from gpusched.sampling.controlled.choice import choose
from gpusched.sampling.controlled.markov import MarkovModel
from gpusched.sampling.controlled.value_head import ValueHead, train_value_head

Floats = NDArray[np.float64]

OBJECTIVES, TOKENS, LENGTH, PROMPTS, SEEDS = 5, 12, 16, 250, 5
ROLLOUTS, TRAINING_STEPS = 4000, 400
CANDIDATES, BLOCK = 12, 4
NAMES = ("reference", "CD, one objective", "CD, uniform", "maximin", "RMOD")


def transformer_claims(setting: Setting) -> tuple[Claim, ...]:
    """Train, decode and compare over a few seeds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates: dict[str, list[float]] = {name: [] for name in NAMES}
        worst: dict[str, list[float]] = {name: [] for name in NAMES}
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        agreement = []
        for seed in range(SEEDS):
            agreement.append(_one(setting.seed, seed, rates, worst, seconds))
            setting.progress(f"transformers: {seed + 1} of {SEEDS}")
    finally:
        torch.set_num_threads(threads)
    found = Outcomes(*({k: np.array(v) for k, v in d.items()} for d in (rates, worst)))
    gain, half = found.difference("RMOD", "CD, uniform")
    reward, reward_half = found.worst_difference("RMOD", "CD, uniform")
    over, over_half = found.worst_difference("RMOD", "reference")
    uniform = "{:+.3f} ± {:.3f}".format(*found.worst_difference("CD, uniform", "reference"))
    simple = "{:+.3f} ± {:.3f}".format(*found.worst_difference("RMOD", "maximin"))
    slower = 100.0 * (np.array(seconds["RMOD"]) / np.array(seconds["CD, uniform"]) - 1.0)
    listed = ", ".join(f"{name} {found.mean(name):.1f}" for name in NAMES)
    return (
        Claim(
            "learnt values, five objectives: worst-case win rate of RMOD above CD-Uniform", "above",
            f"{found.mean('RMOD'):.1f} and {found.mean('CD, uniform'):.1f}", "%", gain - half > 0,
            f"difference {gain:.1f} ± {half:.1f} points; {SEEDS} transformers of two layers trained "
            f"from scratch, value heads trained on {ROLLOUTS} answers, R² against exact values of "
            f"the language {np.mean(agreement):.3f}; {listed}",
        ),
        Claim(
            "the same: mean worst reward, RMOD above CD-Uniform, and above the reference", "above",
            f"{reward:+.3f} ± {reward_half:.3f} and {over:+.3f} ± {over_half:.3f}",
            "standard deviations", reward - reward_half > 0 and over - over_half > 0,
            f"CD-Uniform against the reference {uniform}; RMOD against plain maximin {simple}",
        ),
        Claim(
            "latency over controlled decoding with fixed weights", "+4.5",
            f"{np.median(slower):+.1f}", "%", bool(np.median(slower) < 10.0),
            f"CPU time, median of {SEEDS} runs, {slower.min():+.1f} to {slower.max():+.1f}; a block "
            f"of {CANDIDATES} x {BLOCK} tokens takes this transformer milliseconds, a large model a "
            "hundred times as long, the weights microseconds either way",
        ),
    )  # fmt: skip


def _one(
    base: int, seed: int, rates: dict[str, list[float]], worst: dict[str, list[float]],
    seconds: dict[str, list[float]],
) -> float:  # fmt: skip
    """Run one seed; return the R² of learnt against exact values."""
    rng = np.random.default_rng([base, 1000, seed])
    chain = conflicting_chain(rng, OBJECTIVES, TOKENS, LENGTH)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TinyTransformer(TOKENS, LENGTH + 1)
    first = rng.integers(TOKENS, size=8000)
    corpus = np.hstack([first[:, None], chain.sample(first, LENGTH, rng)])
    train_language_model(model, torch.as_tensor(corpus), steps=TRAINING_STEPS, seed=seed)
    start = torch.as_tensor(rng.integers(TOKENS, size=ROLLOUTS))[:, None]
    rollouts = sample(model, start, LENGTH, generator)
    encoder, head = deepcopy(model), ValueHead(32, OBJECTIVES)
    earned = torch.as_tensor(chain.earned(rollouts[:, 1:].numpy()), dtype=torch.float32)
    train_value_head(
        encoder.hidden, head, rollouts, torch.ones_like(rollouts), earned,
        parameters=encoder.parameters(), epochs=8, learning_rate=2e-3, seed=seed,
    )  # fmt: skip

    def values(tokens: Any) -> Floats:
        with torch.no_grad():
            found: Floats = head(encoder.hidden(tokens)).double().numpy()
        return found

    agreement = _agreement(values(rollouts[:500]), rollouts[:500].numpy(), chain)
    prompts = torch.as_tensor(rng.integers(TOKENS, size=PROMPTS))[:, None]
    reference = chain.earned(sample(model, prompts, LENGTH, generator)[:, 1:].numpy())
    for name in NAMES:
        begun = time.process_time()
        answers = _decode(model, values, prompts, RULES[name], generator)
        seconds[name].append(time.process_time() - begun)
        earned = chain.earned(answers[:, 1:].numpy())
        rates[name].append(win_rate(earned, reference))
        worst[name].append(float(earned.min(1).mean()))
    return agreement


def _decode(
    model: TinyTransformer, values: Callable[[Any], Floats], prompts: Any, given: dict[str, Any],
    generator: Any,
) -> Any:  # fmt: skip
    chosen = settings(OBJECTIVES, **({"candidates": CANDIDATES} | given))
    k, start = chosen.candidates, None
    sequences = prompts
    for _ in range(LENGTH // BLOCK):
        branches = sample(model, sequences.repeat_interleave(k, 0), BLOCK, generator)
        v = values(branches)[:, -1].reshape(len(prompts), k, -1)
        choice = choose(v, chosen, start=start)
        start = choice.weights
        sequences = branches[torch.as_tensor(choice.index + k * np.arange(len(prompts)))]
    return sequences


def _agreement(learnt: Floats, tokens: NDArray[np.int64], chain: MarkovModel) -> float:
    """Return the least R², over objectives, of learnt values of all prefixes against exact ones."""
    to_go = chain.values(LENGTH)
    so_far = chain.reward.T[tokens]
    so_far[:, 0] = 0.0  # the prompt earns nothing
    exact = so_far.cumsum(1) + np.stack(
        [to_go[LENGTH - t][tokens[:, t]] for t in range(LENGTH + 1)], 1
    )
    error = ((learnt - exact) ** 2).mean((0, 1)) / exact.reshape(-1, exact.shape[-1]).var(0)
    return float((1.0 - error).min())
