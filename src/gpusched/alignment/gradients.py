"""Inner products of the gradients of several losses; torch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def gradient_gram(losses: Sequence[Any], of: Iterable[Any]) -> NDArray[np.float64]:
    """Return the Gram matrix (n, n) of the losses' gradients, one backward pass each.

    ``of`` are parameters for MGDA, or the shared activations, such as the last hidden states, for
    MGDA-UB. The graph is kept for the step that follows.
    """
    leaves = [leaf for leaf in of if leaf.requires_grad]
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(leaf) if g is None else g).flatten()
                    for g, leaf in zip(found, leaves, strict=True)
                ]
            )
        )
    stacked = torch.stack(rows).double()
    return np.asarray((stacked @ stacked.T).cpu().numpy())
