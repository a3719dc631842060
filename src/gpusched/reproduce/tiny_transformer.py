"""A transformer of some ten thousand parameters, trained from scratch in seconds; needs torch."""

from typing import Any

import torch
from torch import nn


class TinyTransformer(nn.Module):
    """A causal language model over tokens 0..vocabulary-1, without dropout."""

    def __init__(self, vocabulary: int, length: int, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary)

    def hidden(self, tokens: Any) -> Any:
        """Return hidden states, shape (N, T, width)."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Any) -> Any:
        """Return the next tokens' logits, shape (N, T, vocabulary)."""
        return self.out(self.hidden(tokens))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Any) -> Any:
        n, t, d = x.shape
        q, k, v = (
            y.view(n, t, self.heads, -1).transpose(1, 2)
            for y in self.qkv(self.before(x)).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(self.between(x))


def train_language_model(
    model: TinyTransformer, paths: Any, *, steps: int = 300, batch: int = 64, seed: int = 0
) -> float:
    """Fit the model to token sequences (N, T); return the last steps' mean loss in nats a token."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses = []
    for _ in range(steps):
        rows = paths[torch.randint(len(paths), (batch,), generator=generator)]
        loss = nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / len(losses[-20:])


def sample(model: TinyTransformer, prefix: Any, tokens: int, generator: Any) -> Any:
    """Return prefixes (N, T) with ``tokens`` sampled ones appended."""
    with torch.no_grad():
        for _ in range(tokens):
            p = model(prefix)[:, -1].softmax(-1)
            prefix = torch.cat([prefix, torch.multinomial(p, 1, generator=generator)], 1)
    return prefix
