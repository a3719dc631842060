"""A policy-gradient step on several rewards: group advantages, combination, clipped loss; torch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gpusched.alignment.combine import OF_GRADIENTS, Combined, combine
from gpusched.alignment.gradients import gradient_gram
from gpusched.alignment.normalise import group_advantages
from gpusched.errors import InputError


def clipped_loss(log_p: Any, old_log_p: Any, advantages: Any, mask: Any, clip: float = 0.2) -> Any:
    """Return PPO's loss, the mean over tokens of -min(u A, clipped u A).

    ``advantages`` have shape (B,) or (B, T), the others (B, T).
    """
    a = advantages[:, None] if advantages.dim() == 1 else advantages
    u = (log_p - old_log_p).exp()
    gain = torch.minimum(u * a, u.clamp(1.0 - clip, 1.0 + clip) * a)
    return -(gain * mask).sum() / mask.sum().clamp(min=1)


def policy_gradient_step(
    log_probabilities: Callable[[], Any],
    optimiser: Any,
    rewards: Any,
    mask: Any,
    group_size: int,
    *,
    mode: str = "token",
    epochs: int = 1,
    clip: float = 0.2,
    activations: Callable[[], Sequence[Any]] | None = None,
    **options: Any,
) -> Combined:
    """Update a policy on a batch of sampled answers; return the last combination.

    Args:
        log_probabilities: of the answers' tokens under the policy, shape (B, T), with gradient.
        optimiser: of the policy's parameters.
        rewards: shape (B, n), nan where one does not apply; answers of a group lie together.
        mask: tokens of the answers, shape (B, T).
        group_size: answers a prompt.
        mode: of ``combine``; ``options`` go there too.
        epochs: steps on the batch.
        clip: of the ratio to the sampling policy.
        activations: of the last ``log_probabilities``, shared by all objectives, for ``mgda_ub``.

    Raises:
        InputError: shapes that do not fit, or what ``combine`` refuses.
    """
    if mask.dim() != 2 or len(mask) != len(rewards):
        raise InputError(f"mask: must have shape ({len(rewards)}, tokens), got {tuple(mask.shape)}")
    if mode == "mgda_ub" and activations is None:
        raise InputError(
            "activations: mode mgda_ub needs the activations that all objectives share"
        )
    advantages = group_advantages(rewards, group_size)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    old = None
    for _ in range(epochs):
        log_p = log_probabilities()
        old = log_p.detach() if old is None else old
        gram = None
        if mode in OF_GRADIENTS:
            each = torch.nan_to_num(advantages, nan=0.0).to(log_p.dtype)
            losses = [
                clipped_loss(log_p, old, each[:, i], mask, clip) for i in range(each.shape[1])
            ]
            shared = activations() if mode == "mgda_ub" and activations is not None else parameters
            gram = gradient_gram(losses, shared)
        found = combine(advantages, mode=mode, clip=clip, gram=gram, normalise=False, **options)  # type: ignore[arg-type]
        loss = clipped_loss(log_p, old, found.advantages.to(log_p.dtype), mask, clip)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return found
