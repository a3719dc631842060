"""The question of a split: kinds of workers, GPUs of each group of nodes, and the load of the phases."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.errors import InputError
from gpusched.planning.rounds.nodes import nested

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SplitProblem:
    """Kinds of workers, an entry each, and the load of the phases in the speeds' unit."""

    size: Ints
    """GPUs of a worker."""
    prefill_speed: Floats
    """Work a second of one worker; 0 where its kind may not prefill."""
    decode_speed: Floats
    prefill_load: float
    """Work offered a second."""
    decode_load: float
    group: Ints
    """Index into ``gpus``: the nodes a kind runs on."""
    gpus: Ints
    """GPUs of each group of nodes."""
    per_node: Ints
    """GPUs of a node of each group, of which no worker straddles two; 0 where all are linked alike."""
    kv_tokens: Floats
    """KV cache of a worker."""
    held_tokens: float = 0.0
    """KV cache that the decode workers must hold together (A-6)."""

    @classmethod
    def of(
        cls,
        size: ArrayLike,
        prefill_speed: ArrayLike,
        decode_speed: ArrayLike,
        loads: tuple[float, float],
        gpus: int,
        *,
        per_node: int = 0,
    ) -> "SplitProblem":
        """Return the problem of one group of nodes, by default of GPUs all linked alike."""
        sizes = np.asarray(size, np.int64)
        return cls(
            size=sizes,
            prefill_speed=np.asarray(prefill_speed, np.float64),
            decode_speed=np.asarray(decode_speed, np.float64),
            prefill_load=float(loads[0]),
            decode_load=float(loads[1]),
            group=np.zeros(len(sizes), np.int64),
            gpus=np.array([gpus], np.int64),
            per_node=np.array([per_node], np.int64),
            kv_tokens=np.zeros(len(sizes)),
        )

    def __post_init__(self) -> None:
        if min(self.prefill_load, self.decode_load) <= 0:
            raise InputError("both phases need a load above 0")
        if min(self.prefill_speed.min(initial=0), self.decode_speed.min(initial=0)) < 0:
            raise InputError("speeds of workers must not be negative")
        if self.size.min(initial=1) < 1:
            raise InputError("a worker has at least one GPU")

    @property
    def has_structure(self) -> bool:
        """Whether counting GPUs is enough: workers always pack, and KV cache is no concern."""
        packs = all(nested(self.size[self.group == g], int(n)) for g, n in enumerate(self.per_node))
        return packs and self.held_tokens <= 0
