"""Time of one mixture-of-experts layer under expert parallelism (PROBE, arXiv 2602.00509, section 3).

Counts are ``tokens[e, r]``: choices of expert e by tokens that rank r holds. A rank that hosts an
expert serves its own tokens (locality first); the others form the expert's pool, which is split over
its hosts: ``remote[e, r]``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpusched.domain.dtypes import WEIGHT_BYTES
from gpusched.errors import InputError
from gpusched.timing.iteration import TimingModel
from gpusched.timing.operators import ACTIVATION_BYTES, arithmetic_flops

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.uint8]


class LayerTime(NamedTuple):
    """One layer of one step; arrays of shape (ranks,)."""

    load: Floats
    """Tokens processed."""
    compute_s: Floats
    exchange_s: Floats
    """Dispatch and combine, at the busier of a rank's two directions."""
    transfer_s: Floats
    """Weights of replicas in and out, at the busier direction."""
    exposed_s: float
    """Transfer that does not hide in the window."""

    @property
    def imbalance_ratio(self) -> float:
        """Tokens of the busiest rank over the mean; 1 without tokens."""
        mean = float(self.load.mean())
        return float(self.load.max()) / mean if mean > 0 else 1.0

    @property
    def layer_s(self) -> float:
        """Busiest compute and busiest exchange, which barriers part, and what is exposed."""
        return float(self.compute_s.max() + self.exchange_s.max()) + self.exposed_s


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """Costs of one layer on ranks that each hold an equal run of experts."""

    experts: int
    ranks: int
    token_s: float
    """Compute of one token by one expert."""
    expert_s: float
    """Fixed cost of an expert with any token: its weights are read, its last tile is not full."""
    exchange_token_s: float
    """Dispatch and combine of one token to one expert on another rank, duplicates taken off."""
    transfer_expert_s: float
    """Weights of one expert from rank to rank."""
    attention_s: float
    """Attention of the next layer, during which the network is idle."""
    replica_slots: int = 3
    """Replicas that a rank has room for."""

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.experts < self.ranks or self.experts % self.ranks:
            raise InputError(
                f"experts: {self.experts} must be a multiple of ranks, here {self.ranks}"
            )
        for name in ("token_s", "expert_s", "exchange_token_s", "transfer_expert_s", "attention_s"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(
                    f"{name}: must be finite and at least 0, got {getattr(self, name):g}"
                )
        if self.token_s == 0:
            raise InputError("token_s: must be positive")
        if self.replica_slots < 0:
            raise InputError(f"replica_slots: must be at least 0, got {self.replica_slots}")

    @property
    def home(self) -> Ints:
        """The rank that holds each expert anyway, shape (experts,)."""
        return np.arange(self.experts) * self.ranks // self.experts

    def natives(self) -> Mask:
        """Return who hosts what without replicas, shape (experts, ranks)."""
        hosted = np.zeros((self.experts, self.ranks), np.uint8)
        hosted[np.arange(self.experts), self.home] = 1
        return hosted

    def budget(self, window_s: Floats) -> Ints:
        """Return how many experts each rank may take in, and send, within its window (B11, B12)."""
        if self.transfer_expert_s == 0:
            return np.full(self.ranks, self.replica_slots)
        fit = np.floor(np.asarray(window_s, np.float64) / self.transfer_expert_s + 1e-9)
        return np.minimum(fit, self.replica_slots).astype(np.int64)

    def window_s(self, compute_s: Floats) -> Floats:
        """Return how long each rank's network is idle: its experts' compute, then attention (B14)."""
        return np.asarray(compute_s + self.attention_s, np.float64)

    def check_tokens(self, tokens: ArrayLike) -> Floats:
        """Return counts of shape (experts, ranks).

        Raises:
            InputError: another shape, a nan, an infinity or a negative count.
        """
        counts = np.ascontiguousarray(tokens, np.float64)
        if counts.shape != (self.experts, self.ranks):
            raise InputError(
                f"tokens: must have shape ({self.experts}, {self.ranks}), got {counts.shape}"
            )
        if not np.isfinite(counts).all() or counts.min() < 0:
            raise InputError("tokens: must be finite and at least 0")
        return counts

    def time(
        self, tokens: Floats, hosted: Mask, remote: Floats, window_s: Floats | None = None
    ) -> LayerTime:
        """Return the layer's time under a placement and a split (B2 to B7).

        ``window_s`` is that in which this layer's replicas came in; without it transfers are taken
        to hide.
        """
        own = tokens * hosted
        served = own + remote
        compute_s = self.token_s * served.sum(axis=0) + self.expert_s * (served > 0).sum(axis=0)
        inward, outward = remote.sum(axis=0), (tokens - own).sum(axis=0)
        replicas = hosted.astype(np.int64)
        replicas[np.arange(self.experts), self.home] = 0
        sent = np.bincount(self.home, replicas.sum(axis=1), minlength=self.ranks)
        transfer_s = np.maximum(replicas.sum(axis=0), sent) * self.transfer_expert_s
        late = 0.0 if window_s is None else max(float((transfer_s - window_s).max()), 0.0)
        return LayerTime(
            served.sum(axis=0),
            compute_s,
            np.maximum(inward, outward) * self.exchange_token_s,
            transfer_s,
            late,
        )


def home_split(tokens: Floats, hosted: Mask, share: Floats) -> Floats:
    """Return remote tokens by expert and host, shape (experts, ranks): each expert's pool (tokens of
    ranks that do not host it) split as ``share`` says, whose rows need not sum to 1."""
    pool = (tokens * (1 - hosted)).sum(axis=1)
    weight = share * hosted
    total = weight.sum(axis=1)
    weight = np.where(total[:, None] > 0, weight, hosted)
    return np.asarray(pool[:, None] * weight / weight.sum(axis=1, keepdims=True), np.float64)


def expert_layer(
    timing: TimingModel,
    attention_s: float,
    *,
    link_bytes_per_s: float | None = None,
    replica_slots: int = 3,
) -> ExpertLayer:
    """Return the layer of an engine with expert parallelism, from its timing model.

    A token is sent once to a rank however many of its experts lie there; the count of distinct ranks
    under even routing gives the share saved.

    Raises:
        InputError: the engine has no experts, or does not spread them by expert.
    """
    moe, p, c = timing.model.moe, timing.parallelism, timing.coefficients
    if moe is None or p.ep < 2:
        raise InputError("timing: balancing needs experts spread over at least 2 ranks")
    h = timing.model.hidden
    expert_bytes = timing.model.expert_parameters * WEIGHT_BYTES[timing.weights_dtype]
    rate = c.moe_compute * arithmetic_flops(timing.gpu, timing.weights_dtype)
    link = link_bytes_per_s or c.link_memory * timing.gpu.link_bytes_per_s
    repeats = moe.top_k / distinct_ranks(moe.experts, p.ep, moe.top_k)
    return ExpertLayer(
        experts=moe.experts,
        ranks=p.ep,
        token_s=6.0 * h * moe.expert_dim / p.expert_tp / rate,
        expert_s=expert_bytes / p.expert_tp / (c.moe_memory * timing.gpu.memory_bytes_per_s),
        exchange_token_s=2.0 * h * ACTIVATION_BYTES / (repeats * link),
        transfer_expert_s=expert_bytes / p.expert_tp / link,
        attention_s=attention_s,
        replica_slots=replica_slots,
    )


def distinct_ranks(experts: int, ranks: int, top_k: int) -> float:
    """Return how many ranks a token with ``top_k`` distinct, evenly chosen experts visits on average:
    ``ranks (1 - C(E - E / ranks, k) / C(E, k))``."""
    missed, per_rank = 1.0, experts // ranks
    for i in range(top_k):
        missed *= max(experts - per_rank - i, 0) / (experts - i)
    return ranks * (1.0 - missed)
