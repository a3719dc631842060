"""A value network: from hidden states of a prefix to the final reward of each objective."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpusched.errors import InputError

Encoder = Callable[[Any], Any]
"""Tokens (N, T) -> hidden states (N, T, width) of a causal model."""


class ValueHead(nn.Module):
    """Two layers on each position's hidden state; values of shape (..., objectives)."""

    def __init__(self, width: int, objectives: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, objectives)
        )
        self.register_buffer("mean", torch.zeros(objectives))
        self.register_buffer("scale", torch.ones(objectives))

    def standardised(self, hidden: Any) -> Any:
        """Return values in standard deviations of the training rewards."""
        return self.layers(hidden)

    def forward(self, hidden: Any) -> Any:
        """Return values in the rewards' own units."""
        return self.mean + self.scale * self.standardised(hidden)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well values predict the final rewards of answers held out."""

    mse: list[float]
    r2: list[float]
    """Of each objective over all prefix positions: low where little is decided early."""


def train_value_head(
    encoder: Encoder,
    head: ValueHead,
    tokens: Any,
    mask: Any,
    rewards: Any,
    *,
    parameters: Any = None,
    epochs: int = 5,
    batch: int = 64,
    learning_rate: float = 3e-3,
    held_out: float = 0.1,
    seed: int = 0,
) -> Fit:
    """Fit values of every prefix to the final reward, by least squares over answers of the model.

    Args:
        encoder: of tokens to hidden states.
        head: trained in place.
        tokens: answers sampled from the reference model, shape (N, T).
        mask: positions after which a value is wanted, shape (N, T).
        rewards: final, shape (N, objectives).
        parameters: of the encoder, to be trained as well; it is left alone by default.

    Raises:
        InputError: shapes that do not fit, a reward that is not finite, or too few answers.
    """
    n = len(tokens)
    if mask.shape != tokens.shape or rewards.shape[0] != n:
        raise InputError(
            f"tokens, mask, rewards: {tuple(tokens.shape)}, {tuple(mask.shape)} and "
            f"{tuple(rewards.shape)} do not belong together"
        )
    if not torch.isfinite(rewards).all():
        raise InputError("rewards: must be finite")
    test = max(int(n * held_out), 1)
    if n - test < 2:
        raise InputError(f"tokens: {n} answers are too few to train on")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    train, test_rows = order[test:], order[:test]
    head.mean.copy_(rewards[train].mean(0))
    head.scale.copy_(rewards[train].std(0).clamp(min=1e-6))
    target = (rewards - head.mean) / head.scale
    weights = mask.float()[..., None]
    trained = [*head.parameters(), *(parameters or [])]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    steps = epochs * -(-len(train) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.set_grad_enabled(parameters is not None):
        frozen = None if parameters is not None else encoder(tokens).detach()
    for _ in range(epochs):
        shuffled = train[torch.randperm(len(train), generator=generator)]
        for rows in shuffled.split(batch):
            hidden = encoder(tokens[rows]) if frozen is None else frozen[rows]
            error = (head.standardised(hidden) - target[rows][:, None, :]) ** 2 * weights[rows]
            loss = error.sum() / weights[rows].sum() / rewards.shape[1]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        hidden = encoder(tokens[test_rows]) if frozen is None else frozen[test_rows]
        m = weights[test_rows]
        error = (head(hidden) - rewards[test_rows][:, None, :]) ** 2 * m
        mse = error.sum((0, 1)) / m.sum()
        spread = (rewards[test_rows][:, None, :] - rewards[test_rows].mean(0)) ** 2 * m
        r2 = 1.0 - error.sum((0, 1)) / spread.sum((0, 1)).clamp(min=1e-12)
    return Fit(mse.tolist(), r2.tolist())
