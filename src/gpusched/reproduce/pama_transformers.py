"""PAMA on transformers trained from scratch; needs torch."""

from typing import Any

import numpy as np
import torch

from gpusched.alignment.policy_gradient import policy_gradient_step
from gpusched.reproduce.claim import Claim, Setting
from gpusched.reproduce.pama_rewards import LENGTH, TOKENS, hypervolume, rewards_of
from gpusched.reproduce.tiny_transformer import TinyTransformer, sample
from gpusched.statistics import mean_interval

UPDATES, PROMPTS, GROUP, SEEDS = 60, 8, 16, 4
LEARNING_RATE = 3e-3
MODES = {
    "PAMA, token": "token", "PAMA, batch_qp": "batch_qp", "linear (MORLHF)": "linear",
    "MGDA": "mgda", "MGDA-UB": "mgda_ub",
}  # fmt: skip


def transformer_claims(setting: Setting) -> list[Claim]:
    """Train with each mode from the same start and compare."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        least: dict[str, list[float]] = {name: [] for name in MODES}
        volume: dict[str, list[float]] = {name: [] for name in MODES}
        for seed in range(SEEDS):
            for name, mode in MODES.items():
                path = train(setting.seed + seed, mode)
                final = path[-5:].mean(0)
                least[name].append(float(final.min()))
                volume[name].append(hypervolume(final, path[0]))
            setting.progress(f"transformers: {seed + 1} of {SEEDS}")
    finally:
        torch.set_num_threads(threads)
    listed = ", ".join(
        "{} {:.3f} ± {:.3f}".format(n, *mean_interval(np.array(x))) for n, x in least.items()
    )
    areas = ", ".join(
        "{} {:.3f} ± {:.3f}".format(n, *mean_interval(np.array(x))) for n, x in volume.items()
    )
    claims = []
    for other, published in (("linear (MORLHF)", "2.32 and 1.62"), ("MGDA-UB", "2.32 and 1.47")):
        gain, half = mean_interval(np.array(least["PAMA, token"]) - np.array(least[other]))
        claims.append(
            Claim(
                f"on transformers: least of two mean rewards, PAMA above {other}",
                f"{published} (sentiment)",
                f"{np.mean(least['PAMA, token']):.3f} and {np.mean(least[other]):.3f}", "reward",
                gain - half > 0,
                f"difference {gain:+.3f} ± {half:.3f}; {SEEDS} seeds of {UPDATES} updates, two layers, "
                f"trained from scratch. Least: {listed}. Hypervolume: {areas}",
            )
        )  # fmt: skip
    return claims


def train(seed: int, mode: str) -> Any:
    """Train a transformer from random weights; return mean rewards by update, shape (U, 2)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TinyTransformer(TOKENS, LENGTH + 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    path = np.empty((UPDATES, 2))
    hidden: list[Any] = []
    for update in range(UPDATES):
        first = torch.randint(TOKENS, (PROMPTS, 1), generator=generator).repeat_interleave(GROUP, 0)
        texts = sample(model, first, LENGTH, generator)
        rewards = rewards_of(texts[:, 1:].numpy(), 1.0)
        path[update] = rewards.mean(0)

        def log_probabilities(texts: Any = texts) -> Any:
            hidden[:] = [model.hidden(texts[:, :-1])]
            log_p = model.out(hidden[0]).log_softmax(-1)
            return log_p.gather(-1, texts[:, 1:, None])[..., 0]

        policy_gradient_step(
            log_probabilities, optimiser, torch.as_tensor(rewards, dtype=torch.float32),
            torch.ones(len(texts), LENGTH), GROUP, mode=mode, activations=lambda: hidden,
        )  # fmt: skip
    return path
