"""A language model with exact values: a Markov chain over tokens with additive rewards."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpusched.errors import InputError
from gpusched.sampling.controlled.choice import choose
from gpusched.sampling.controlled.strategy import ControlledDecoding

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MarkovModel:
    """Tokens 0..A-1; an answer has a fixed length and earns for each of its tokens."""

    transition: Floats
    """Shape (A, A): probabilities of the next token."""
    reward: Floats
    """Shape (G, A): what a token adds to each objective."""

    def __post_init__(self) -> None:
        p, r = self.transition, self.reward
        if p.ndim != 2 or p.shape[0] != p.shape[1] or r.ndim != 2 or r.shape[1] != p.shape[0]:
            raise InputError(
                f"transition, reward: must have shapes (A, A) and (G, A), got {p.shape}, {r.shape}"
            )
        if not (np.isfinite(r).all() and (p >= 0).all() and np.allclose(p.sum(1), 1.0)):
            raise InputError("transition: rows must be probabilities; reward: must be finite")

    def values(self, horizon: int) -> Floats:
        """Return the expected reward to come, shape (horizon + 1, A, G): by tokens left and last
        token; the backward recursion V_h(a) = sum_b P(b|a) (r(b) + V_{h-1}(b))."""
        found = np.zeros((horizon + 1, len(self.transition), len(self.reward)))
        for left in range(1, horizon + 1):
            found[left] = self.transition @ (self.reward.T + found[left - 1])
        return found

    def sample(self, last: Ints, tokens: int, rng: np.random.Generator) -> Ints:
        """Return continuations of last tokens, shape (*last.shape, tokens)."""
        return sample_paths(
            np.broadcast_to(self.transition, (tokens, *self.transition.shape)), last, rng
        )

    def earned(self, tokens: Ints) -> Floats:
        """Return the rewards of token sequences of shape (..., T), shape (..., G)."""
        return np.asarray(self.reward.T[tokens].sum(-2))


def sample_paths(transitions: Floats, last: Ints, rng: np.random.Generator) -> Ints:
    """Return paths of a chain whose transitions, shape (T, A, A), change from step to step."""
    steps = transitions.cumsum(-1)
    found = np.empty((*last.shape, len(transitions)), np.int64)
    for t in range(len(transitions)):
        u = rng.random(last.shape)[..., None] * steps[t, :, -1][last][..., None]
        last = (steps[t][last] <= u).sum(-1).clip(max=transitions.shape[-1] - 1)
        found[..., t] = last
    return found


def decode(
    model: MarkovModel,
    prompts: Ints,
    length: int,
    settings: ControlledDecoding,
    rng: np.random.Generator,
    *,
    values: Floats | None = None,
) -> tuple[Ints, Floats]:
    """Decode answers of ``length`` tokens to prompts, given by their last tokens, shape (N,).

    ``values`` are those of ``MarkovModel.values``, exact by default. Returns the tokens, shape
    (N, length), and the weights of each block, shape (blocks, N, G).

    Raises:
        InputError: the settings have another number of objectives than the model.
    """
    to_go = model.values(length) if values is None else values
    last, kept, weights = prompts, [], []
    so_far = np.zeros((len(prompts), len(model.reward)))
    start = None
    done = 0
    while done < length:
        size = min(settings.block_tokens, length - done)
        done += size
        branches = np.repeat(last[:, None], settings.candidates, 1)
        blocks = model.sample(branches, size, rng)
        earned = so_far[:, None, :] + model.earned(blocks)
        choice = choose(
            earned + to_go[length - done][blocks[..., -1]], settings, start=start, rng=rng
        )
        rows = np.arange(len(prompts))
        block = blocks[rows, choice.index]
        kept.append(block)
        weights.append(choice.weights)
        so_far, last, start = earned[rows, choice.index], block[:, -1], choice.weights
    return np.concatenate(kept, 1), np.array(weights)


def soft_optimal(model: MarkovModel, length: int, weights: Floats, strength: float) -> Floats:
    """Return the transitions, shape (length, A, A), of the policy that maximises strength times
    the weighted reward less its divergence from the model: token-level soft dynamic programming."""
    with np.errstate(divide="ignore"):
        log_p = np.log(model.transition)
    gain = strength * (weights @ model.reward)
    soft_value = np.zeros(len(model.transition))
    found = np.empty((length, *model.transition.shape))
    for t in range(length - 1, -1, -1):
        scores = log_p + gain + soft_value
        top = scores.max(-1, keepdims=True)
        e = np.exp(scores - top)
        total = e.sum(-1, keepdims=True)
        found[t] = e / total
        soft_value = (top + np.log(total))[:, 0]
    return found


def soup(model: MarkovModel, length: int, strength: float) -> Floats:
    """Return the transitions of averaged policies: the mean of the logits of the soft-optimal
    policy of each objective (rewarded soups, and multi-objective decoding; for tables of logits the
    two are the same)."""
    g = len(model.reward)
    logits = np.zeros((length, *model.transition.shape))
    with np.errstate(divide="ignore"):
        for i in range(g):
            logits += np.log(soft_optimal(model, length, np.eye(g)[i], strength)) / g
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
