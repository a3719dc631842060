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
    def tp_pp(self) -> str:
        """The GPUs of a replica in words of tensor and pipeline parallelism."""
        return f"TP{self.tp}" + (f"·PP{self.pp}" if self.pp > 1 else "")

    def __str__(self) -> str:
        rest = (("ep", self.ep), ("dp", self.dp))
        return "·".join([self.tp_pp] + [f"{name.upper()}{n}" for name, n in rest if n > 1])
