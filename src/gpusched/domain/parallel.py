"""How one replica is spread over GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Parallelism:
    """Degrees of parallelism of one replica.

    ``tp`` GPUs share the attention of one data-parallel rank; ``dp`` ranks (data-parallel
    attention) share the experts; ``pp`` pipeline stages hold successive layers. Each stage has
    ``tp * dp`` GPUs, over which the experts are spread ``ep`` ways by expert and
    ``tp * dp / ep`` ways inside each expert.
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        if min(self.tp, self.pp, self.ep, self.dp) < 1:
            raise ValueError(f"parallel degrees must be at least 1: {self}")
        if (self.tp * self.dp) % self.ep:
            raise ValueError(f"ep must divide tp * dp: {self}")

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.dp * self.pp

    @property
    def expert_tp(self) -> int:
        """Ways each expert is split."""
        return self.tp * self.dp // self.ep

    @property
    def layout(self) -> str:
        """How the GPUs of a replica share its attention: ``TP8``, ``TP2·PP4`` or ``TP2·DP8``."""
        sizes = {"TP": self.tp, "DP": self.dp, "PP": self.pp}
        return "·".join(f"{name}{n}" for name, n in sizes.items() if n > 1) or "TP1"

    def __str__(self) -> str:
        return self.layout + (f"·EP{self.ep}" if self.ep > 1 else "")
